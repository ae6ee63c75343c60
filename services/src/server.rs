use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::container::{Act, Container, Image, engine};
use crate::launch;
use crate::port::Port;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server for a test; it ends with this value.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    address: String,
    running: Mutex<Running>,
    recipe: Option<Recipe>,
    dir: TempDir,
    _port: Option<Port>,
}

#[derive(Debug)]
enum Running {
    Elsewhere,
    Child(Option<Child>),
    Container(Container),
}

/// How a program is run.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// Who runs it when root would.
    pub(crate) user: Option<&'static str>,
    /// What ends it in good order.
    pub(crate) stop: Signal,
    /// Whether it answers at that address.
    pub(crate) ready: fn(&str) -> bool,
}

impl Recipe {
    pub(crate) fn new(program: impl Into<PathBuf>, args: Vec<String>) -> Self {
        Self { program: program.into(), args, user: None, stop: Signal::KILL, ready: connects }
    }
}

impl Server {
    /// One that runs elsewhere, at `address`.
    pub(crate) fn elsewhere(name: &'static str, address: String) -> Self {
        let running = Mutex::new(Running::Elsewhere);
        Self { name, address, running, recipe: None, dir: scratch(), _port: None }
    }

    /// One of our own: `recipe` is told its port and its folder.
    pub(crate) fn start(name: &'static str, recipe: impl FnOnce(u16, &Path) -> Recipe) -> Self {
        let (port, dir) = (Port::reserve(), scratch());
        let recipe = recipe(port.number, dir.path());
        let server = Self {
            name,
            address: format!("127.0.0.1:{}", port.number),
            running: Mutex::new(Running::Child(None)),
            recipe: Some(recipe),
            dir,
            _port: Some(port),
        };
        server.restart();
        server
    }

    /// One in a container, if a container engine answers.
    pub(crate) fn contained(
        name: &'static str,
        image: Image,
        args: &[String],
        ready: fn(&str) -> bool,
    ) -> Option<Self> {
        engine().then(|| {
            let port = Port::reserve();
            let address = format!("127.0.0.1:{}", port.number);
            let container = Container::start(image, args, port.number);
            wait(name, || ready(&address).then_some(()));
            let running = Mutex::new(Running::Container(container));
            Self { name, address, running, recipe: None, dir: scratch(), _port: Some(port) }
        })
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port.
    pub fn port(&self) -> u16 {
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("the address ends in a port")
    }

    /// A folder that lives as long as the server; it may write into it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The number of its process, while it has one here.
    pub fn pid(&self) -> Option<u32> {
        match &*self.running() {
            Running::Child(Some(child)) => Some(child.id()),
            _ => None,
        }
    }

    /// Ends it at once, as `kill -9` does, with all its processes. Returns when it is gone.
    pub fn kill(&self) {
        match &mut *self.running() {
            Running::Elsewhere => panic!("{} is not ours to kill: use own()", self.name),
            Running::Container(container) => container.act(Act::Kill),
            Running::Child(child) => {
                if let Some(child) = child.take() {
                    end(child, Signal::KILL);
                }
            }
        }
    }

    /// Ends it at once if it runs, and starts it again on the same port. Returns when it answers.
    pub fn restart(&self) {
        self.kill();
        match (&mut *self.running(), &self.recipe) {
            (Running::Container(container), _) => container.act(Act::Start),
            (Running::Child(child), Some(recipe)) => *child = Some(self.spawn(recipe)),
            _ => unreachable!("what is not ours was not killed"),
        }
    }

    /// Stops it where it stands: connections stay, nothing is answered.
    pub fn pause(&self) {
        match &*self.running() {
            Running::Container(container) => container.act(Act::Pause),
            Running::Child(Some(child)) => drop(freeze(child.id())),
            _ => panic!("{} does not run here", self.name),
        }
    }

    /// Lets it go on after [`Server::pause`].
    pub fn resume(&self) {
        match &*self.running() {
            Running::Container(container) => container.act(Act::Resume),
            Running::Child(Some(child)) => {
                descendants(child.id()).iter().chain([&child.id()]).for_each(|pid| send(*pid, Signal::CONT));
            }
            _ => panic!("{} does not run here", self.name),
        }
    }

    fn spawn(&self, recipe: &Recipe) -> Child {
        let log = self.dir.path().join("log");
        let out = File::options().create(true).append(true).open(&log).expect("the log can be opened");
        let death = if recipe.stop == Signal::INT { "INT" } else { "KILL" };
        let mut command = launch::command(&recipe.program, recipe.user, death);
        command
            .args(&recipe.args)
            .stdin(Stdio::null())
            .stderr(out.try_clone().expect("a file can be shared"));
        command.stdout(out).current_dir(self.dir.path());
        let started = launch::launch(command);
        let mut child = started.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        wait(self.name, || {
            if let Ok(Some(status)) = child.try_wait() {
                let said = fs::read_to_string(&log).unwrap_or_default();
                panic!("{} ended at once with {status}: {said}", self.name);
            }
            (recipe.ready)(&self.address).then_some(())
        });
        child
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = self.recipe.as_ref().map_or(Signal::KILL, |recipe| recipe.stop);
        if let Running::Child(child) = &mut *self.running()
            && let Some(child) = child.take()
        {
            end(child, stop);
        }
    }
}

/// Polls until there is something.
pub(crate) fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} is not ready after {PATIENCE:?}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether something listens there.
pub(crate) fn connects(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| TcpStream::connect(address).is_ok())
}

fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("tiercache-services-").tempdir();
    let dir = dir.expect("a folder can be made");
    // Servers that run as another user must come through.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("the folder is ours");
    dir
}

/// Sends `last` and waits until the process and what it started are gone.
fn end(mut child: Child, last: Signal) {
    let main = child.id();
    let others = if last == Signal::KILL { freeze(main) } else { descendants(main) };
    send(main, last);
    if last == Signal::KILL {
        others.iter().for_each(|pid| send(*pid, Signal::KILL));
    } else {
        // A stopped process acts on a signal only when it goes on.
        others.iter().chain([&main]).for_each(|pid| send(*pid, Signal::CONT));
    }
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if start.elapsed() > Duration::from_secs(3) {
            send(main, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(1));
    }
    while others.iter().any(|pid| runs(*pid)) && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Stops a process and what it started, and returns the latter. The process first, so that it starts no more.
fn freeze(main: u32) -> Vec<u32> {
    send(main, Signal::STOP);
    wait("a process to stop", || stat(main).is_none_or(|(state, _)| "TtZX".contains(state)).then_some(()));
    let others = descendants(main);
    others.iter().for_each(|pid| send(*pid, Signal::STOP));
    others
}

fn send(pid: u32, signal: Signal) {
    // One that is gone already needs none.
    let _ = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, signal));
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1)))
        .collect();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = processes.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child);
        let children: Vec<u32> = children.collect();
        parents.extend(&children);
        found.extend(children);
    }
    found
}

fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
