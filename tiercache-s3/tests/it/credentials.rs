//! Where credentials come from when the configuration has none.

use std::process::Command;

use crate::common::{ACCESS, Fake, SECRET, config, put, value};
use tiercache_core::Error;
use tiercache_core::testing::ManualClock;
use tiercache_s3::{S3Config, S3Tier};

/// Runs as a child of the test below, with an environment of its own.
#[tokio::test]
async fn with_the_environment_it_finds() {
    let Ok(url) = std::env::var("TIERCACHE_S3_CHILD_URL") else { return };
    let config = S3Config { access_key: None, secret_key: None, ..config(&url) };
    match S3Tier::open(config, "dry", ManualClock::new()).await {
        Ok(tier) => {
            put(&tier, "k", "value", 1).await;
            assert_eq!(value(&tier, "k").await, Some("value".into()));
        }
        Err(error) => {
            assert!(
                matches!(error, Error::Refused(_)) && error.to_string().contains("no credentials"),
                "{error}"
            );
            println!("refused");
        }
    }
}

#[test]
fn keys_come_from_the_environment_else_from_the_profile_else_opening_says_how_to_give_some() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("credentials");
    let text = format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&profile, text).unwrap();
    let none = dir.path().join("none");
    let profile = profile.to_str().unwrap();
    for (variables, refused) in [
        (vec![("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET)], false),
        (vec![("AWS_SHARED_CREDENTIALS_FILE", profile)], false),
        (vec![], true),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "credentials::with_the_environment_it_finds", "--nocapture"]).env_clear();
        child.env("HOME", &none).env("AWS_EC2_METADATA_DISABLED", "true");
        child.env("TIERCACHE_S3_CHILD_URL", fake.url()).envs(variables.clone());
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{variables:?}: {said}");
        assert_eq!(said.contains("refused"), refused, "{variables:?}: {said}");
    }
}
