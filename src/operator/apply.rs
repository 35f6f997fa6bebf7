//! Thin I/O: makes objects be as they were built, and writes only what differs.
//!
//! Server-side apply with one field manager. Before it, the object is read and compared, so that a pool that is as
//! it should be costs no write at all: an apply that changes nothing still goes through admission and audit.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::operator::build::{HASH, hash};

/// The field manager of everything that the operator applies.
pub const MANAGER: &str = "coproc-operator";

/// Why an object was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else made an object of that name.
    #[error("{kind} {name} exists and belongs to somebody else: delete or rename it, or rename the pool")]
    NotOurs {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
    },
    /// The API server refused or did not answer.
    #[error("apply {kind} {name}: {}", brief(.source))]
    Api {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// What it said.
        source: Box<kube::Error>,
    },
}

/// What the API server said, without the structure around it.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// What can be applied.
pub trait Applicable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Applicable for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// Makes an object be as wanted: the object as it is, and whether it was written.
pub async fn apply<K: Applicable>(client: &Client, mut wanted: K) -> Result<(K, bool), Error> {
    let name = wanted.name_any();
    let failed =
        |source| Error::Api { kind: K::kind(&()).into(), name: wanted.name_any(), source: Box::new(source) };
    let api: Api<K> = Api::namespaced(client.clone(), wanted.namespace().as_deref().unwrap_or_default());
    let live = api.get_opt(&name).await.map_err(failed)?;
    let stamp = hash(&wanted);
    wanted.annotations_mut().insert(HASH.into(), stamp);
    if let Some(live) = live {
        if !has_same_controller(&wanted, &live) {
            return Err(Error::NotOurs { kind: K::kind(&()).into(), name });
        }
        if is_applied(&wanted, &live) {
            return Ok((live, false));
        }
    }
    let params = PatchParams::apply(MANAGER).force();
    let result = api.patch(&name, &params, &Patch::Apply(with_kind(&wanted))).await;
    match result {
        Ok(applied) => Ok((applied, true)),
        Err(source) => Err(Error::Api { kind: K::kind(&()).into(), name, source: Box::new(source) }),
    }
}

/// Removes an object that is not wanted any more, if it is ours: whether there was one.
pub async fn remove<K: Applicable>(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: &str,
) -> Result<bool, Error> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let failed =
        |source| Error::Api { kind: K::kind(&()).into(), name: name.to_owned(), source: Box::new(source) };
    let Some(live) = api.get_opt(name).await.map_err(failed)? else { return Ok(false) };
    if live.owner_references().iter().all(|reference| reference.uid != owner) {
        return Ok(false);
    }
    api.delete(name, &kube::api::DeleteParams::default()).await.map_err(failed)?;
    Ok(true)
}

/// The JSON form with `apiVersion` and `kind`, which server-side apply asks for.
pub fn with_kind<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    value
}

fn has_same_controller<K: Resource>(wanted: &K, live: &K) -> bool {
    let uids = |object: &K| -> Vec<String> {
        object.owner_references().iter().map(|reference| reference.uid.clone()).collect()
    };
    let ours = uids(wanted);
    uids(live).iter().any(|uid| ours.contains(uid))
}

/// Whether the object is as it was applied: the same hash, and nothing of it changed by others since.
fn is_applied<K: Resource + Serialize>(wanted: &K, live: &K) -> bool {
    let stamp = |object: &K| object.annotations().get(HASH).cloned();
    let json = |object: &K| serde_json::to_value(object).unwrap_or_default();
    stamp(wanted) == stamp(live) && covers(&json(live), &json(wanted))
}

/// Whether everything in `wanted` is in `live`, which may have more: what the API server filled in.
fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            // An empty object or list may have been dropped.
            live.get(key).map_or_else(|| is_empty(wanted), |live| covers(live, wanted))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (Value::String(live), Value::String(wanted)) => {
            live == wanted || quantity(live).is_some_and(|live| Some(live) == quantity(wanted))
        }
        _ => live == wanted,
    }
}

/// A quantity of Kubernetes in thousandths: the API server rewrites `1024Mi` as `1Gi`.
fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: i128 = text[..end].parse().ok()?;
    let factor: i128 = match &text[end..] {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_server_adds_is_no_difference_and_what_others_change_is() {
        let wanted = json!({"a": 1, "list": [{"x": 1}], "none": {}});
        for (live, same) in [
            (json!({"a": 1, "list": [{"x": 1, "default": 2}], "more": 3}), true),
            (json!({"a": 2, "list": [{"x": 1}]}), false),
            (json!({"a": 1, "list": [{"x": 1}, {"x": 2}]}), false),
            (json!({"list": [{"x": 1}]}), false),
            (json!({"a": 1, "list": [{"x": 1}], "none": "0"}), false),
        ] {
            assert_eq!(covers(&live, &wanted), same, "{live}");
        }
        for (live, wanted, same) in [("1Gi", "1024Mi", true), ("1", "1000m", true), ("1Gi", "1G", false)] {
            assert_eq!(covers(&json!(live), &json!(wanted)), same, "{live} {wanted}");
        }
    }
}
