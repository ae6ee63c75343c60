use std::ops::Deref;

use crate::container::Image;
use crate::find;
use crate::server::{Recipe, Server, connects};

const IMAGE: Image = Image { name: "mongo", tag: "7", port: 27017, env: &[] };

/// A **simulator** of MongoDB: its protocol on SQLite, without replica sets and write concerns.
#[derive(Debug)]
pub struct MongoSim(Server);

impl MongoSim {
    /// One of this test's own in memory: restarted, it has forgotten everything. `None` when Python or its package
    /// is not there.
    pub fn start() -> Option<Self> {
        Self::run("memory")
    }

    /// One of this test's own that keeps what it has in a file.
    pub fn persistent() -> Option<Self> {
        Self::run("data.sqlite")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("mongodb://{}", self.address())
    }

    /// From here on fails the commands that `refusal` names, or all of them.
    pub fn refuse(&self, refusal: Refusal) {
        let text = match refusal {
            Refusal::Everyone => {
                r#"{"code": 13, "codeName": "Unauthorized", "errmsg": "command requires authentication"}"#
            }
            Refusal::Writes => {
                r#"{"code": 14031, "codeName": "OutOfDiskSpace", "errmsg": "available disk space is less than required",
                    "commands": ["insert", "update", "findAndModify"]}"#
            }
        };
        // Renamed, so that no half of it is read.
        let (fresh, file) = (self.dir().join("refusing.new"), self.dir().join("refusing"));
        std::fs::write(&fresh, text).expect("the folder is ours");
        std::fs::rename(fresh, file).expect("the folder is ours");
    }

    /// Ends what [`MongoSim::refuse`] began.
    pub fn admit(&self) {
        let _ = std::fs::remove_file(self.dir().join("refusing"));
    }

    fn run(data: &str) -> Option<Self> {
        let python = find::python("nx_27017").or_else(|| {
            let remedy =
                "install nx-27017==0.8.1 into a virtual environment and name it in TIERCACHE_TEST_VENV";
            find::skipped("the simulator of MongoDB", remedy);
            None
        })?;
        Some(Self(Server::start("the simulator of MongoDB", |port, dir| {
            let launcher = dir.join("mongo_simulator.py");
            std::fs::write(&launcher, include_str!("mongo_simulator.py"))
                .expect("the launcher can be written");
            let (launcher, port) = (launcher.display().to_string(), port.to_string());
            let place = [launcher.as_str(), "--db", data, "--host", "127.0.0.1", "-p", &port];
            // Left to itself it lets only one run on a machine.
            let alone = ["--pid-file", "pid", "--log-file", "log"];
            Recipe::new(python, [&place[..], &alone].concat().into_iter().map(str::to_owned).collect())
        })))
    }
}

/// What the simulator refuses, as MongoDB does where it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All that comes, since it comes from nobody who may: code 13.
    Everyone,
    /// What would take room, since there is none: code 14031.
    Writes,
}

impl Deref for MongoSim {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

/// MongoDB itself.
#[derive(Debug)]
pub struct Mongod {
    server: Server,
    url: String,
}

impl Mongod {
    /// One of whatever kind is at hand. No package repository has it, so that none is not a failure anywhere.
    pub fn start() -> Option<Self> {
        let Some(url) = find::variable("TIERCACHE_TEST_MONGODB_URI") else { return Self::own() };
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let address = place.split(['/', '?', ',']).next().unwrap_or_default();
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:27017") };
        Some(Self { server: Server::elsewhere("MongoDB", address), url })
    }

    /// One of this test's own.
    pub fn own() -> Option<Self> {
        let server = match find::program("mongod") {
            Some(program) => Some(Server::start("MongoDB", |port, dir| {
                let (dir, port) = (dir.display().to_string(), port.to_string());
                let args = ["--dbpath", &dir, "--bind_ip", "127.0.0.1", "--port", &port];
                Recipe::new(program, args.map(str::to_owned).to_vec())
            })),
            None => Server::contained("MongoDB", IMAGE, &[], connects),
        };
        if server.is_none() {
            find::note("SKIPPED: MongoDB itself is not available here: set TIERCACHE_TEST_MONGODB_URI");
        }
        server.map(|server| Self { url: format!("mongodb://{}", server.address()), server })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl Deref for Mongod {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
