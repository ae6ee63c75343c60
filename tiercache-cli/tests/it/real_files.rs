//! The example `usr_share` on a few hundred files: everything comes back, over a restart too.

#[allow(dead_code, unreachable_pub, reason = "its `main` is left out here")]
#[path = "../../../examples/usr_share.rs"]
mod usr_share;

use usr_share::Job;

#[test]
fn files_come_back_byte_for_byte_over_a_restart() {
    let job = Job {
        tiercache: env!("CARGO_BIN_EXE_tiercache").into(),
        folder: "/usr/share".into(),
        files: 500,
        connections: 4,
        hot: "512KiB",
        cold: "1MiB",
    };
    let report = job.run().expect("every file comes back");
    let files = report["files"].as_u64().expect("a number");
    assert!(files > 100, "{report}");
    for pass in [1, 2] {
        let levels = report["passes"][pass]["levels"].as_object().expect("levels");
        assert_eq!(levels.values().filter_map(serde_json::Value::as_u64).sum::<u64>(), files, "{report}");
        assert!(levels.contains_key("dry"), "{report}");
    }
    assert_eq!(report["stopped"]["dropped"], 0, "{report}");
}
