//! S3 in this process, s3s over a folder, with places where a request can be held or fail. It verifies signatures.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};

/// A running server; it ends with this value.
pub(crate) struct Fake {
    url: String,
    dir: tempfile::TempDir,
    hooks: Arc<Hooks>,
    _stop: oneshot::Sender<()>,
}

/// What becomes of a request of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It and what follows is refused.
    Fails,
    /// It is never answered, nor carried out.
    Hangs,
}

struct Hooks {
    /// Puts of entries wait here, whole, and are carried out whether the client still waits or not.
    gate: watch::Sender<bool>,
    received: Semaphore,
    landed: Semaphore,
    conditions: AtomicBool,
    conditions_known: AtomicBool,
    cut: Mutex<Option<(usize, Cut)>>,
    /// The upload that was begun last, and how many requests it has had.
    upload: Mutex<(String, usize)>,
    reached_cut: Semaphore,
    uploads: Mutex<BTreeMap<String, (String, SystemTime)>>,
    requests: Mutex<BTreeMap<&'static str, usize>>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(super::BUCKET)).unwrap();
        let hooks = Arc::new(Hooks {
            gate: watch::channel(true).0,
            received: Semaphore::new(0),
            landed: Semaphore::new(0),
            conditions: AtomicBool::new(true),
            conditions_known: AtomicBool::new(true),
            cut: Mutex::new(None),
            upload: Mutex::default(),
            reached_cut: Semaphore::new(0),
            uploads: Mutex::default(),
            requests: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let inner = Arc::new(FileSystem::new(dir.path()).unwrap());
        let gated = Gated { root: dir.path().to_owned(), inner, hooks: hooks.clone() };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, gated) => {}
                }
            });
        });
        Self { url: format!("http://{}", listening.recv().unwrap()), dir, hooks, _stop: stop }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Holds puts of entries from here on.
    pub(crate) fn hold_puts(&self) {
        self.hooks.gate.send_replace(false);
    }

    /// Lets them go on.
    pub(crate) fn release_puts(&self) {
        self.hooks.gate.send_replace(true);
    }

    /// Returns when a put that is held has come in whole.
    pub(crate) async fn received(&self) {
        self.hooks.received.acquire().await.unwrap().forget();
    }

    /// Returns when a put that was held has been carried out.
    pub(crate) async fn landed(&self) {
        self.hooks.landed.acquire().await.unwrap().forget();
    }

    /// From here on conditions are ignored, as some vendors do.
    pub(crate) fn ignore_conditions(&self) {
        self.hooks.conditions.store(false, Ordering::SeqCst);
    }

    /// From here on requests with a condition are answered 501, as others do.
    pub(crate) fn refuse_conditions(&self) {
        self.hooks.conditions_known.store(false, Ordering::SeqCst);
    }

    /// Cuts the next upload at that request: 0 begins it, the last completes it.
    pub(crate) fn cut_upload(&self, at: usize, cut: Cut) {
        *self.hooks.cut.lock().unwrap() = Some((at, cut));
    }

    pub(crate) fn mend(&self) {
        *self.hooks.cut.lock().unwrap() = None;
    }

    /// Returns when an upload was cut.
    pub(crate) async fn reached_cut(&self) {
        self.hooks.reached_cut.acquire().await.unwrap().forget();
    }

    /// Uploads that were begun and not ended.
    pub(crate) fn uploads(&self) -> usize {
        self.hooks.uploads.lock().unwrap().len()
    }

    /// Files of parts that are left.
    pub(crate) fn parts(&self) -> usize {
        files(self.dir.path(), &|name| name.contains(".part-")).len()
    }

    /// Files of objects, for those who damage them.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        files(&self.dir.path().join(super::BUCKET), &|_| true)
            .into_iter()
            .filter(|path| path.components().any(|part| part.as_os_str() == "o"))
            .collect()
    }

    /// How often each kind of request was made since the last call.
    pub(crate) fn requests(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.hooks.requests.lock().unwrap())
    }

    /// Forgets everything.
    pub(crate) fn wipe(&self) {
        let bucket = self.dir.path().join(super::BUCKET);
        std::fs::remove_dir_all(&bucket).unwrap();
        std::fs::create_dir(&bucket).unwrap();
    }
}

fn files(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
        if file.is_dir() {
            found.extend(files(&file, wanted));
        } else if wanted(file.file_name().unwrap().to_str().unwrap()) {
            found.push(file);
        }
    }
    found
}

async fn serve(listener: TcpListener, gated: Gated) {
    let mut builder = S3ServiceBuilder::new(gated);
    builder.set_auth(SimpleAuth::from_single(super::ACCESS, super::SECRET));
    let service = builder.build();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let service = service.clone();
        tokio::spawn(async move {
            // A client that goes away is none of our business.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

#[derive(Clone)]
struct Gated {
    root: PathBuf,
    inner: Arc<FileSystem>,
    hooks: Arc<Hooks>,
}

impl Gated {
    fn count(&self, kind: &'static str) {
        *self.hooks.requests.lock().unwrap().entry(kind).or_default() += 1;
    }

    /// `id` is `None` for the request that begins one.
    async fn upload_request(&self, id: Option<&str>) -> S3Result<()> {
        let number = {
            let mut upload = self.hooks.upload.lock().unwrap();
            if id.is_some_and(|id| id != upload.0) {
                // A straggler of an upload before.
                return Ok(());
            }
            upload.1 = if id.is_none() { 0 } else { upload.1 + 1 };
            upload.1
        };
        let cut = *self.hooks.cut.lock().unwrap();
        match cut {
            // A part that is refused before it was read may be sent once more.
            Some((at, cut)) if at == number || cut == Cut::Fails && number > at => {
                self.hooks.reached_cut.add_permits(1);
                match cut {
                    Cut::Fails => Err(s3_error!(InvalidRequest, "cut")),
                    Cut::Hangs => std::future::pending().await,
                }
            }
            _ => Ok(()),
        }
    }

    fn condition<T>(&self, condition: &mut Option<T>) -> S3Result<()> {
        if condition.is_some() && !self.hooks.conditions_known.load(Ordering::SeqCst) {
            return Err(s3_error!(NotImplemented));
        }
        if !self.hooks.conditions.load(Ordering::SeqCst) {
            *condition = None;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl S3 for Gated {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.count(if req.input.range.is_some() { "range" } else { "get" });
        self.inner.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.count("head");
        self.inner.head_object(req).await
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.count("put");
        let refused =
            self.condition(&mut req.input.if_match).and(self.condition(&mut req.input.if_none_match));
        if let Err(error) = refused {
            // Read to its end first: a client whose connection closes while it writes may never see the answer.
            if let Some(mut body) = req.input.body.take() {
                while body.next().await.is_some() {}
            }
            return Err(error);
        }
        let mut gate = self.hooks.gate.subscribe();
        if *gate.borrow() || !req.input.key.contains("/o/") {
            return self.inner.put_object(req).await;
        }
        let mut body = BytesMut::new();
        if let Some(mut stream) = req.input.body.take() {
            while let Some(chunk) = stream.next().await {
                body.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
            }
        }
        req.input.body = Some(s3s::Body::from(Bytes::from(body)).into());
        self.hooks.received.add_permits(1);
        let (inner, hooks) = (self.inner.clone(), self.hooks.clone());
        let carried_out = tokio::spawn(async move {
            let _ = gate.wait_for(|open| *open).await;
            let answer = inner.put_object(req).await;
            hooks.landed.add_permits(1);
            answer
        });
        carried_out.await.map_err(|_| s3_error!(InternalError))?
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.count("delete");
        self.inner.delete_object(req).await
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.count("list");
        self.inner.list_objects_v2(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.upload_request(None).await?;
        let key = req.input.key.clone();
        let answer = self.inner.create_multipart_upload(req).await?;
        let id = answer.output.upload_id.clone().unwrap();
        self.hooks.upload.lock().unwrap().0.clone_from(&id);
        self.hooks.uploads.lock().unwrap().insert(id, (key, SystemTime::now()));
        Ok(answer)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.upload_request(Some(&req.input.upload_id)).await?;
        let (id, number) = (req.input.upload_id.clone(), req.input.part_number);
        let (inner, hooks, root) = (self.inner.clone(), self.hooks.clone(), self.root.clone());
        let carried_out = tokio::spawn(async move {
            let answer = inner.upload_part(req).await?;
            // s3s-fs would keep a part that arrives after the end of its upload.
            if !hooks.uploads.lock().unwrap().contains_key(&id) {
                let _ = std::fs::remove_file(root.join(format!(".upload_id-{id}.part-{number}")));
                return Err(s3_error!(NoSuchUpload));
            }
            Ok(answer)
        });
        carried_out.await.map_err(|_| s3_error!(InternalError))?
    }

    async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.upload_request(Some(&req.input.upload_id)).await?;
        self.condition(&mut req.input.if_match)?;
        self.condition(&mut req.input.if_none_match)?;
        let id = req.input.upload_id.clone();
        let answer = self.inner.complete_multipart_upload(req).await?;
        self.hooks.uploads.lock().unwrap().remove(&id);
        Ok(answer)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.hooks.uploads.lock().unwrap().remove(&req.input.upload_id);
        self.inner.abort_multipart_upload(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let prefix = req.input.prefix.unwrap_or_default();
        let uploads = self.hooks.uploads.lock().unwrap();
        let under: HashSet<_> = uploads.iter().filter(|(_, (key, _))| key.starts_with(&prefix)).collect();
        let listed = under.into_iter().map(|(id, (key, begun))| MultipartUpload {
            key: Some(key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some((*begun).into()),
            ..MultipartUpload::default()
        });
        let uploads = Some(listed.collect());
        Ok(S3Response::new(ListMultipartUploadsOutput { uploads, ..ListMultipartUploadsOutput::default() }))
    }
}
