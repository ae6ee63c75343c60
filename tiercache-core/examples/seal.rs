//! What sealing costs: `cargo run --release -p tiercache-core --features encryption --example seal`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tiercache_core::{Codec, EncryptionConfig, Entry, Generation, Key, Packing, Result, Secret, Timestamp};

fn main() -> Result<()> {
    let key = Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned());
    let config = EncryptionConfig { key: Some(key), ..EncryptionConfig::default() };
    let plain = Codec::new(Packing::None)?;
    let sealing = plain.clone().with_encryption(&config)?;
    println!("{:>9} | {:>23} | {:>23}", "value", "write plain, sealed µs", "read plain, sealed µs");
    for len in [256, 4 << 10, 64 << 10, 1 << 20] {
        let [plain, sealed] = [&plain, &sealing].map(|codec| costs(codec, len));
        let ((write, read), (write_sealed, read_sealed)) = (plain?, sealed?);
        println!("{len:>9} | {write:>11.2} {write_sealed:>11.2} | {read:>11.2} {read_sealed:>11.2}");
    }
    Ok(())
}

/// Microseconds to write and to read.
fn costs(codec: &Codec, len: usize) -> Result<(f64, f64)> {
    let key = Key::new("", b"key:00000000000000000000")?;
    let entry = Entry::new(vec![7; len], Generation::new(1), Timestamp::EPOCH);
    let mut out = Vec::new();
    let mut failed = false;
    let write = measure(|| {
        out.clear();
        failed |= codec.encode(key.as_ref(), black_box(&entry), &mut out).is_err();
    });
    let bytes = Bytes::from(out);
    let read = measure(|| failed |= codec.decode_for(key.as_ref(), black_box(&bytes)).is_err());
    assert!(!failed, "an entry could not be written or read");
    Ok((write, read))
}

/// The least of some means.
fn measure(mut run: impl FnMut()) -> f64 {
    let mean = |_| {
        let (start, mut runs) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(20) {
            (0..10).for_each(|_| run());
            runs += 10;
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(runs)
    };
    (0..20).map(mean).fold(f64::INFINITY, f64::min)
}
