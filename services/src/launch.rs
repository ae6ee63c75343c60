use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::find;

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a program that ends with this process. The death signal is sent when the *thread* that started the
/// program ends, and a test's own thread does end: so one thread that never does starts them all.
pub(crate) fn launch(command: Command) -> io::Result<Child> {
    static LAUNCHER: OnceLock<Sender<Order>> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let (orders, taken) = channel::<Order>();
        thread::Builder::new()
            .name("launcher".into())
            .spawn(move || {
                for (mut command, answer) in taken {
                    // Whoever asked may be gone: then the child is ended by its death signal.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        orders
    });
    let (answer, child) = channel();
    launcher.send((command, answer)).expect("the launcher never ends");
    child.recv().expect("the launcher never ends")
}

/// `program`, to be run as `user` if this process may choose, and to be sent `signal` when this process ends.
pub(crate) fn command(program: &std::path::Path, user: Option<&str>, signal: &str) -> Command {
    let Some(setpriv) = find::program("setpriv") else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    if let Some(ids) = user.filter(|_| rustix::process::getuid().is_root()).and_then(ids_of) {
        // The signal would be forgotten when a program changes its user itself.
        command.args([format!("--reuid={}", ids.0), format!("--regid={}", ids.1), "--clear-groups".into()]);
    }
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

/// The numbers of a user and its group.
pub(crate) fn ids_of(user: &str) -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = fields.into_iter().find(|fields| fields.first() == Some(&user) && fields.len() > 3)?;
    Some((line[2].parse().ok()?, line[3].parse().ok()?))
}
