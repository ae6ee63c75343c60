//! What every contender can do, each a loop over many keys so that no call between hides in the figure.

use std::hint::black_box;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

use super::{MANY, value};

/// Does it for each of the keys; returns for how many.
pub(crate) type Run = Box<dyn Fn(&[&String]) -> usize + Send + Sync>;

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// Puts a fresh value under every key.
    pub(crate) fill: Run,
    /// Gets, and sets what is not there.
    pub(crate) through: Run,
    pub(crate) get: Run,
    pub(crate) set: Run,
    pub(crate) get_many: Option<Run>,
    pub(crate) typed_get: Option<Run>,
    /// Moves everything a level down.
    pub(crate) sink: Box<dyn Fn() + Send + Sync>,
    pub(crate) promotes: bool,
}

impl Contender {
    /// How it does `case`, if it does.
    pub(crate) fn run(&self, case: &str, through: bool) -> Option<&Run> {
        match case {
            "hit" if through => Some(&self.through),
            "hit" | "miss" => Some(&self.get),
            "set" => Some(&self.set),
            "get_many" => self.get_many.as_ref(),
            "typed_hit" => self.typed_get.as_ref(),
            "promote" => self.promotes.then_some(&self.get),
            _ => None,
        }
    }
}

/// What a get came to, in the contender's own type: turning it into another would count as its time.
pub(crate) trait Answer {
    fn is_hit(&self) -> bool;
}

impl<T> Answer for Option<T> {
    fn is_hit(&self) -> bool {
        self.is_some()
    }
}

impl<T, E> Answer for Result<Option<T>, E> {
    fn is_hit(&self) -> bool {
        matches!(self, Ok(Some(_)))
    }
}

/// Looks at an answer where it is: moving it would count as its time.
#[inline]
pub(crate) fn seen<T>(answer: &T) {
    black_box(answer);
}

/// A contender that answers at once.
pub(crate) fn direct<A: Answer>(
    name: &'static str,
    get: impl Fn(&String) -> A + Clone + Send + Sync + 'static,
    set: impl Fn(&String, Bytes) + Clone + Send + Sync + 'static,
) -> Contender {
    let (fill_set, through_get, through_set, many_get) = (set.clone(), get.clone(), set.clone(), get.clone());
    let shared = value();
    let through_value = value();
    Contender {
        name,
        fill: Box::new(move |keys| {
            keys.iter().for_each(|key| fill_set(key, value()));
            keys.len()
        }),
        through: Box::new(move |keys| {
            for key in keys {
                if !black_box(through_get(key)).is_hit() {
                    through_set(key, through_value.clone());
                }
            }
            keys.len()
        }),
        get: Box::new(move |keys| {
            keys.iter().for_each(|key| seen(&get(key)));
            keys.len()
        }),
        set: Box::new(move |keys| {
            keys.iter().for_each(|key| set(key, shared.clone()));
            keys.len()
        }),
        get_many: Some(Box::new(move |keys| {
            for many in keys.chunks(MANY) {
                drop(black_box(many.iter().map(|key| many_get(key)).collect::<Vec<_>>()));
            }
            keys.len()
        })),
        typed_get: None,
        sink: Box::new(|| ()),
        promotes: false,
    }
}

/// A contender that is awaited.
pub(crate) fn awaited<C: Clone + Send + Sync + 'static, A: Answer>(
    name: &'static str,
    cache: C,
    get: impl AsyncFn(&C, &String) -> A + Clone + Send + Sync + 'static,
    set: impl AsyncFn(&C, &String, Bytes) + Clone + Send + Sync + 'static,
) -> Contender {
    let (fill_set, through_get, through_set) = (set.clone(), get.clone(), set.clone());
    let [fill_cache, through_cache, get_cache] = [(); 3].map(|()| cache.clone());
    let shared = value();
    let through_value = value();
    Contender {
        name,
        fill: each(move |keys| {
            wait(async {
                for key in keys {
                    fill_set(&fill_cache, key, value()).await;
                }
            });
        }),
        through: each(move |keys| {
            wait(async {
                for key in keys {
                    if !black_box(through_get(&through_cache, key).await).is_hit() {
                        through_set(&through_cache, key, through_value.clone()).await;
                    }
                }
            });
        }),
        get: each(move |keys| {
            wait(async {
                for key in keys {
                    seen(&get(&get_cache, key).await);
                }
            });
        }),
        set: each(move |keys| {
            wait(async {
                for key in keys {
                    set(&cache, key, shared.clone()).await;
                }
            });
        }),
        get_many: None,
        typed_get: None,
        sink: Box::new(|| ()),
        promotes: false,
    }
}

/// A run that does all it is given.
pub(crate) fn each(work: impl Fn(&[&String]) + Send + Sync + 'static) -> Run {
    Box::new(move |keys| {
        work(keys);
        keys.len()
    })
}

/// Waits on a runtime of this thread's own.
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
