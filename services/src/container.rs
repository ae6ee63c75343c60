use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

use crate::find;

/// What is started when the program is not here but a container engine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) port: u16,
    pub(crate) env: &'static [(&'static str, &'static str)],
}

/// What is done to a container.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Kill,
    Start,
    Pause,
    Resume,
}

/// A container that ends with this value. It lives on a thread of its own with a runtime of its own, so that it
/// can be driven from any test.
#[derive(Debug)]
pub(crate) struct Container {
    acts: Sender<(Act, Sender<Result<(), String>>)>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Whether a container engine answers.
pub(crate) fn engine() -> bool {
    find::variable("DOCKER_HOST").is_some() || UnixStream::connect("/var/run/docker.sock").is_ok()
}

impl Container {
    /// `image` with its port at `port` of this machine.
    pub(crate) fn start(image: Image, args: &[String], port: u16) -> Self {
        let (acts, taken) = channel();
        let (ready, started) = channel();
        let args = args.to_vec();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            runtime.block_on(async {
                let mut request = GenericImage::new(image.name, image.tag)
                    .with_mapped_port(port, image.port.tcp())
                    .with_cmd(args);
                for (name, value) in image.env {
                    request = request.with_env_var(*name, *value);
                }
                match request.start().await {
                    Ok(container) => {
                        let _ = ready.send(Ok(()));
                        serve(container, taken).await;
                    }
                    Err(error) => drop(ready.send(Err(error.to_string()))),
                }
            });
        });
        let outcome = started.recv().expect("the thread answers");
        outcome.unwrap_or_else(|error| panic!("cannot start {}: {error}", image.name));
        Self { acts, thread: Some(thread) }
    }

    pub(crate) fn act(&self, act: Act) {
        let (answer, outcome) = channel();
        self.acts.send((act, answer)).expect("the container's thread lives");
        let outcome = outcome.recv().expect("the container's thread answers");
        outcome.unwrap_or_else(|error| panic!("{act:?} failed on the container: {error}"));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        (self.acts, _) = channel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Nothing else runs on this runtime: waiting in it for the next act blocks nobody.
async fn serve(container: ContainerAsync<GenericImage>, acts: Receiver<(Act, Sender<Result<(), String>>)>) {
    for (act, answer) in acts {
        let outcome = match act {
            Act::Kill => container.stop_with_timeout(Some(0)).await,
            Act::Start => container.start().await,
            Act::Pause => container.pause().await,
            Act::Resume => container.unpause().await,
        };
        let _ = answer.send(outcome.map_err(|error| error.to_string()));
    }
    let _ = container.rm().await;
}
