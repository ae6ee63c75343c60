//! The suite against a real PostgreSQL.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::time::Duration;

use crate::common::{config, opened};
use tiercache_core::testing::lease;
use tiercache_core::testing::tracking::{persistent_suite, suite};
use tiercache_core::{Leasing, Tracking};
use tiercache_services::Postgres;

async fn run_suite() {
    let Some(server) = Postgres::start() else { return };
    suite(async || Arc::new(opened(config(&server)).await) as Arc<dyn Tracking>).await;
}

#[tokio::test]
async fn on_one_thread() {
    run_suite().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_threads() {
    run_suite().await;
}

#[tokio::test]
async fn across_restarts() {
    let Some(server) = Postgres::start() else { return };
    persistent_suite(|| {
        let config = config(&server);
        async move || Arc::new(opened(config.clone()).await) as Arc<dyn Tracking>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gives_out_leases() {
    let Some(server) = Postgres::start() else { return };
    let place = config(&server);
    let open = async |number| {
        let schema = format!("{}_{number}", place.schema);
        let config = tiercache_tracking::PostgresConfig { schema, ..place.clone() };
        Arc::new(opened(config).await) as Arc<dyn Leasing>
    };
    lease::suite(Duration::from_millis(200), open).await;
}
