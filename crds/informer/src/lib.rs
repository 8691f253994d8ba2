//! One task per watch, each with its own connection and its own backoff, so that one failing watch never
//! stalls another one.
//!
//! It owns the way from the API server to a handler and nothing else: no cache, no index, no work queue.
//! The handler is called from the watch's task, in the order of the API server's events, and has to be quick;
//! what takes time belongs behind a channel or a queue.
//!
//! ```no_run
//! # use k8s_openapi::api::core::v1::ConfigMap;
//! # use braid_informer::{Event, Informers, Selection};
//! # async fn example(client: kube::Client) {
//! let mut informers = Informers::default();
//! informers.watch("configmaps", kube::Api::all(client), Selection::default(), |event: Event<ConfigMap>| {
//!     match event {
//!         Event::Reset(all) => println!("{} objects; every other one is gone", all.len()),
//!         Event::Applied(object) => println!("changed: {:?}", object.metadata.name),
//!         Event::Deleted(object) => println!("deleted: {:?}", object.metadata.name),
//!         Event::Undecodable(object) => eprintln!("{object}"),
//!     }
//! });
//! let proof = informers.in_sync().await;
//! # let _ = proof;
//! # }
//! ```

mod backoff;
mod connection;
mod event;
mod guarded;
mod health;
mod informers;
mod task;

pub use backoff::Backoff;
pub use connection::{ConnectionError, LOG_FILTER, connection};
pub use event::{Event, Handler, Undecodable};
pub use guarded::Guarded;
pub use health::WatchHealth;
pub use informers::{InSync, Informers, Selection};
