use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::find;

/// What a test of TLS needs: PEM files, made by `openssl`.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// An authority.
    pub ca: PathBuf,
    /// A server's certificate for 127.0.0.1, signed by that authority.
    pub server: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Another authority, which has signed nothing.
    pub other: PathBuf,
}

impl Certificates {
    /// New ones, in that folder; `None` when there is no `openssl`.
    ///
    /// # Panics
    /// When they cannot be made though there is.
    pub fn make(folder: &Path) -> Option<Self> {
        let Some(openssl) = find::program("openssl") else {
            find::skipped("openssl", "install the package openssl");
            return None;
        };
        let extensions = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        std::fs::write(folder.join("extensions"), extensions).expect("the folder is ours");
        let fresh = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for line in [
            format!("req -x509 {fresh} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"),
            format!("req -x509 {fresh} -keyout other.key -out other.pem -days 2 -subj /CN=other"),
            format!("req {fresh} -keyout server.key -out server.csr -subj /CN=server"),
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
             -out server.pem"
                .to_owned(),
        ] {
            let mut command = Command::new(&openssl);
            command.args(line.split_whitespace()).current_dir(folder).stdin(Stdio::null());
            let output = command.output().expect("openssl runs");
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let file = |name: &str| folder.join(name);
        Some(Self {
            ca: file("ca.pem"),
            server: file("server.pem"),
            key: file("server.key"),
            other: file("other.pem"),
        })
    }
}
