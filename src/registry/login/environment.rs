//! What the environment of a pod says of its identity in a cloud, by the names that the clouds' own SDKs read.

use std::path::PathBuf;

use crate::secret::Secret;

/// The identities that a process has from its environment; read once, by the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// In AWS.
    pub aws: AwsEnvironment,
    /// In Azure.
    pub azure: AzureEnvironment,
    /// In Google Cloud.
    pub gcp: GcpEnvironment,
}

/// Long-lived or session keys of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKeys {
    /// `AWS_ACCESS_KEY_ID`.
    pub id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: Secret,
    /// `AWS_SESSION_TOKEN`.
    pub session: Option<Secret>,
}

/// In AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsEnvironment {
    /// `AWS_ACCESS_KEY_ID` and what belongs to it.
    pub keys: Option<AwsKeys>,
    /// `AWS_ROLE_ARN`.
    pub role: Option<String>,
    /// `AWS_ROLE_SESSION_NAME`.
    pub session_name: Option<String>,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
    /// `AWS_REGION`, else `AWS_DEFAULT_REGION`: where STS is asked.
    pub region: Option<String>,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub container_uri: Option<String>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`.
    pub container_token_file: Option<PathBuf>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub container_token: Option<Secret>,
    /// `AWS_ENDPOINT_URL_STS`, else `AWS_ENDPOINT_URL`.
    pub sts_url: Option<String>,
    /// `AWS_ENDPOINT_URL_ECR`, else `AWS_ENDPOINT_URL`.
    pub ecr_url: Option<String>,
    /// `AWS_ENDPOINT_URL_ECR_PUBLIC`, else `AWS_ENDPOINT_URL`.
    pub ecr_public_url: Option<String>,
}

/// In Azure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureEnvironment {
    /// `AZURE_CLIENT_ID`.
    pub client: Option<String>,
    /// `AZURE_TENANT_ID`.
    pub tenant: Option<String>,
    /// `AZURE_FEDERATED_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
    /// `AZURE_AUTHORITY_HOST`.
    pub authority: Option<String>,
}

/// In Google Cloud.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcpEnvironment {
    /// `GCE_METADATA_HOST`: `host[:port]` of the metadata server.
    pub metadata_host: Option<String>,
    /// `GOOGLE_APPLICATION_CREDENTIALS`: a file of type external_account.
    pub credentials_file: Option<PathBuf>,
    /// `CLOUDSDK_API_ENDPOINT_OVERRIDES_STS`.
    pub sts_url: Option<String>,
    /// `CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS`.
    pub iam_url: Option<String>,
}

impl Environment {
    /// Reads the variables through `variable`; empty ones count as absent.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let secret = |name: &str| get(name).map(Secret::new);
        let keys = get("AWS_ACCESS_KEY_ID").zip(secret("AWS_SECRET_ACCESS_KEY"));
        let endpoint = |name: &str| get(name).or_else(|| get("AWS_ENDPOINT_URL"));
        Self {
            aws: AwsEnvironment {
                keys: keys.map(|(id, secret_key)| AwsKeys {
                    id,
                    secret: secret_key,
                    session: secret("AWS_SESSION_TOKEN"),
                }),
                role: get("AWS_ROLE_ARN"),
                session_name: get("AWS_ROLE_SESSION_NAME"),
                token_file: path("AWS_WEB_IDENTITY_TOKEN_FILE"),
                region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
                container_uri: get("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
                container_token_file: path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
                container_token: secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
                sts_url: endpoint("AWS_ENDPOINT_URL_STS"),
                ecr_url: endpoint("AWS_ENDPOINT_URL_ECR"),
                ecr_public_url: endpoint("AWS_ENDPOINT_URL_ECR_PUBLIC"),
            },
            azure: AzureEnvironment {
                client: get("AZURE_CLIENT_ID"),
                tenant: get("AZURE_TENANT_ID"),
                token_file: path("AZURE_FEDERATED_TOKEN_FILE"),
                authority: get("AZURE_AUTHORITY_HOST"),
            },
            gcp: GcpEnvironment {
                metadata_host: get("GCE_METADATA_HOST"),
                credentials_file: path("GOOGLE_APPLICATION_CREDENTIALS"),
                sts_url: get("CLOUDSDK_API_ENDPOINT_OVERRIDES_STS"),
                iam_url: get("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS"),
            },
        }
    }
}
