//! AWS Signature Version 4, for requests whose body is at hand (AWS General Reference, "Signing AWS API requests").

use aws_lc_rs::hmac;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::environment::AwsKeys;
use crate::{digest::Digest, registry::target::Target};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What a request is signed for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// The headers that make a request the holder's of `keys`: `x-amz-date`, `x-amz-security-token` for session keys, and
/// `authorization`. `headers` are signed besides `host`; names in lower case. `None` where a key holds characters that no
/// header may have.
pub(super) fn sign(
    keys: &AwsKeys,
    scope: Scope<'_>,
    method: &str,
    url: &Target,
    headers: &[(&str, &str)],
    body: &[u8],
    now: Timestamp,
) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = &time[..8];
    let authority = url.authority();
    let mut signed: Vec<(&str, &str)> = headers.to_vec();
    signed.extend([("host", authority.as_str()), ("x-amz-date", time.as_str())]);
    if let Some(session) = &keys.session {
        signed.push(("x-amz-security-token", session.expose()));
    }
    signed.sort_unstable();
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    // Paths and queries come escaped; ours hold nothing that would have to be escaped twice.
    let mut query: Vec<&str> = url.query().split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let request =
        format!("{method}\n{}\n{}\n{lines}\n{names}\n{}", url.path(), query.join("&"), Digest::sha256(body).hex());

    let Scope { region, service } = scope;
    let scope = format!("{date}/{region}/{service}/aws4_request");
    let to_sign = format!("{ALGORITHM}\n{time}\n{scope}\n{}", Digest::sha256(request.as_bytes()).hex());
    let signature = hex::encode(mac(&signing_key(keys, date, region, service), to_sign.as_bytes()));
    let authorization =
        format!("{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.id);

    let hidden = |text: &str| {
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let mut out = vec![
        (HeaderName::from_static("x-amz-date"), HeaderValue::try_from(&time).ok()?),
        (HeaderName::from_static("authorization"), hidden(&authorization)?),
    ];
    if let Some(session) = &keys.session {
        out.push((HeaderName::from_static("x-amz-security-token"), hidden(session.expose())?));
    }
    Some(out)
}

fn signing_key(keys: &AwsKeys, date: &str, region: &str, service: &str) -> Vec<u8> {
    let first = format!("AWS4{}", keys.secret.expose()).into_bytes();
    [date, region, service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part.as_bytes()))
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn keys() -> AwsKeys {
        AwsKeys {
            id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
        }
    }

    fn signature(service: &str, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> (String, String) {
        let now = "2015-08-30T12:36:00Z".parse().unwrap();
        let scope = Scope { region: "us-east-1", service };
        let url = Target::parse(url).unwrap();
        let signed = sign(&keys(), scope, method, &url, headers, body.as_bytes(), now).unwrap();
        let find =
            |wanted: &str| signed.iter().find(|(name, _)| name == wanted).unwrap().1.to_str().unwrap().to_owned();
        assert_eq!(find("x-amz-date"), "20150830T123600Z");
        let authorization = find("authorization");
        let (head, signature) = authorization.split_once(", Signature=").unwrap();
        (head.to_owned(), signature.to_owned())
    }

    /// AWS General Reference, "Examples of how to derive a signing key" and "Create a signed request".
    #[test]
    fn the_example_of_the_reference_comes_out() {
        assert_eq!(
            hex::encode(signing_key(&keys(), "20150830", "us-east-1", "iam")),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
        let content_type = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        let url = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08";
        let (head, signature) = signature("iam", "GET", url, &[content_type], "");
        assert_eq!(
            head,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date"
        );
        assert_eq!(signature, "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7");
    }

    /// Of `aws-sig-v4-test-suite`: get-vanilla, get-vanilla-query-order-key-case, post-vanilla, post-x-www-form-urlencoded.
    #[test]
    fn the_published_test_suite_comes_out() {
        let form = ("content-type", "application/x-www-form-urlencoded");
        for (method, url, headers, body, wanted) in [
            (
                "GET",
                "https://example.amazonaws.com/",
                &[][..],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "GET",
                "https://example.amazonaws.com/?Param2=value2&Param1=value1",
                &[],
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "POST",
                "https://example.amazonaws.com/",
                &[],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "POST",
                "https://example.amazonaws.com/",
                &[form],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            assert_eq!(signature("service", method, url, headers, body).1, wanted, "{method} {url}");
        }
    }

    #[test]
    fn a_session_token_is_signed_and_hidden() {
        let keys = AwsKeys { session: Some(Secret::new("token")), ..keys() };
        let url = Target::parse("https://api.ecr.eu-west-1.amazonaws.com/").unwrap();
        let scope = Scope { region: "eu-west-1", service: "ecr" };
        let signed = sign(&keys, scope, "POST", &url, &[], b"{}", Timestamp::UNIX_EPOCH).unwrap();
        let authorization = &signed.iter().find(|(name, _)| name == "authorization").unwrap().1;
        assert!(authorization.to_str().unwrap().contains("SignedHeaders=host;x-amz-date;x-amz-security-token,"));
        assert!(signed.iter().all(|(name, value)| name == "x-amz-date" || value.is_sensitive()));
    }
}
