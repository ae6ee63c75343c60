#![doc = include_str!("../README.md")]

mod certificates;
mod container;
mod find;
mod launch;
mod memcached;
mod mongo;
mod moto;
mod port;
mod postgres;
mod proxy;
mod redis;
mod server;

pub use certificates::Certificates;
pub use find::note;
pub use memcached::Memcached;
pub use mongo::{MongoSim, Mongod, Refusal};
pub use moto::Moto;
pub use postgres::Postgres;
pub use proxy::{Fault, Proxy};
pub use redis::{Redis, RedisCluster, RedisSentinel};
pub use server::Server;
