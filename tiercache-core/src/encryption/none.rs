use crate::envelope::Damage;
use crate::{Error, Result};

use super::{EncryptionConfig, SEAL_HEAD, SEAL_TAG};

/// Without the feature there are no keys.
#[derive(Debug)]
pub(crate) enum Keys {}

impl Keys {
    pub(crate) fn of(_: &EncryptionConfig) -> Result<Self> {
        Err(Error::Config("encryption: it is not compiled in, enable the feature `encryption`".into()))
    }

    pub(crate) fn require(&self) -> bool {
        match *self {}
    }

    pub(crate) fn head(&self) -> Result<[u8; SEAL_HEAD], Damage> {
        match *self {}
    }

    pub(crate) fn seal(&self, _: &[u8], _: &mut [u8]) -> Result<[u8; SEAL_TAG], Damage> {
        match *self {}
    }

    pub(crate) fn open(&self, _: &[u8], _: &mut [u8]) -> Result<(), Damage> {
        match *self {}
    }
}
