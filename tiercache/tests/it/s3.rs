//! A level in S3 over TLS, by what stands in the file.
#![cfg(all(feature = "s3", feature = "ram"))]

use std::path::Path;
use std::time::Duration;

use tiercache::{CacheManager, Error, FromConfig, Level, Result};
use tiercache_services::Certificates;

use crate::common::s3::{S3, SECRET};

struct Setup {
    folder: tempfile::TempDir,
    certificates: Certificates,
    server: S3,
}

impl Setup {
    /// None where certificates cannot be made.
    async fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(folder.path())?;
        let server = S3::guarded(&certificates).await;
        Some(Self { folder, certificates, server })
    }

    /// A cache of a file that names those authorities.
    async fn open(&self, ca: Option<&Path>) -> Result<CacheManager> {
        let ca = ca.map(|ca| format!(", ca_file: '{}'", ca.display())).unwrap_or_default();
        let file = self.folder.path().join("tier.yaml");
        let text = format!(
            "hot_cache: {{ backend: ram, max_size: 1MiB }}\ncold_cache: {{ backend: none }}\n\
             dry_cache: {}\ntracking: {{ backend: none }}\nwrite: through\n",
            self.server.section(&ca)
        );
        std::fs::write(&file, text).unwrap();
        CacheManager::from_config(&file).await
    }

    /// What is said when it does not open, with its cause.
    async fn refused(&self, ca: Option<&Path>) -> (Error, String) {
        let error = self.open(ca).await.expect_err("it is not to be trusted");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let told = format!("{error} {cause}");
        assert!(!told.contains(SECRET) && !format!("{error:?}").contains(SECRET), "{told}");
        (error, told)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_authority_the_file_names_is_used_over_tls() {
    let Some(setup) = Setup::new().await else { return };
    assert!(setup.server.url().starts_with("https://"));
    let large = "value ".repeat(500_000);
    for round in 1..=2 {
        let cache = setup.open(Some(&setup.certificates.ca)).await.unwrap();
        if round == 1 {
            cache.set("k", "v").tag("type", "text").await.unwrap();
            cache.set("large", large.clone()).await.unwrap();
            cache.set("gone", "v").await.unwrap();
            assert!(cache.delete("gone").await.unwrap().found);
        } else {
            let entry = cache.entry("k").await.unwrap().expect("it is there");
            assert_eq!(
                (entry.level, &entry.value[..], &*entry.tags["type"]),
                (Level::Dry, &b"v"[..], "text")
            );
            assert_eq!(cache.get("large").await.unwrap().expect("it is there"), large);
            assert_eq!(cache.get("gone").await.unwrap(), None);
        }
        let report = cache.close(Duration::from_secs(10)).await.unwrap();
        assert!(report.is_clean(), "{report}");
    }
    assert!(!setup.server.files().is_empty(), "it was this server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_authorities_that_is_missing_or_bad_is_told_of_with_section_and_key() {
    let Some(setup) = Setup::new().await else { return };
    let [empty, junk] = ["empty.pem", "junk.pem"].map(|name| setup.folder.path().join(name));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&junk, "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n").unwrap();
    for (ca, why) in [
        (setup.folder.path().join("nowhere.pem"), "No such file"),
        (empty, "has no certificate in it"),
        (junk, "is no PEM file"),
    ] {
        let (error, told) = setup.refused(Some(&ca)).await;
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        let named = format!("tier.yaml: dry_cache: ca_file: {}: ", ca.display());
        assert!(told.contains(&named) && told.contains(why), "{told}");
    }
    assert!(setup.server.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_nobody_named_has_signed_is_refused() {
    let Some(setup) = Setup::new().await else { return };
    for ca in [None, Some(&*setup.certificates.other)] {
        let (error, told) = setup.refused(ca).await;
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        for part in ["dry_cache: ", "certificate is not trusted", "ca_file"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }
    assert!(setup.server.files().is_empty());
}
