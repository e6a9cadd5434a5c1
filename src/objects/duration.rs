//! Durations as Kubernetes and Flux write them: `1h30m`, `500ms` (Go's `time.ParseDuration`).

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that keeps how it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FluxDuration {
    text: String,
    value: Duration,
}

impl FluxDuration {
    /// The length.
    pub fn get(&self) -> Duration {
        self.value
    }

    /// Whole seconds: for defaults.
    pub fn from_secs(seconds: u32) -> Self {
        Self { text: format!("{seconds}s"), value: Duration::from_secs(seconds.into()) }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for FluxDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration: write a number and ms, s, m or h, such as 5m or 1h30m");
        let mut rest = text;
        let mut seconds = 0f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            seconds += number
                * match &rest[..letters] {
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return Err(wrong()),
                };
            rest = &rest[letters..];
        }
        if text.is_empty() || seconds > 1e9 {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), value: Duration::from_secs_f64(seconds) })
    }
}

impl fmt::Display for FluxDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The pattern of Flux's CRDs.
impl JsonSchema for FluxDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$" })
    }
}

impl Serialize for FluxDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for FluxDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_flux_accepts() {
        for (text, millis) in [("5m", 300_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1_500), ("0s", 0)] {
            assert_eq!(text.parse::<FluxDuration>().unwrap().get(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "m", "5d", "-5m", "5m ", "1..5s", "9999999999h"] {
            assert!(text.parse::<FluxDuration>().is_err(), "{text}");
        }
    }
}
