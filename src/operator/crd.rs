//! The three kinds of `coproc.dev/v1alpha1`, and the YAML of their definitions.
//!
//! `crds/` holds what `definitions` makes; a test compares, `UPDATE=1 cargo test --features operator` rewrites.
//! What serde and schemars cannot say is put in by `finish`.

pub mod coprocessor;
pub mod pipeline;
pub mod pool;
pub mod shared;
pub mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

pub use coprocessor::{Coprocessor, CoprocessorSpec};
pub use pipeline::{Pipeline, PipelineSpec};
pub use pool::{RuntimePool, RuntimePoolSpec, RuntimePoolStatus};
pub use status::DeploymentResourceStatus;

/// Name of each file in `crds/`, and the definition in it.
pub fn definitions() -> Vec<(&'static str, Value)> {
    vec![
        ("runtimepools.yaml", finish(&RuntimePool::crd())),
        ("coprocessors.yaml", finish(&Coprocessor::crd())),
        ("pipelines.yaml", finish(&Pipeline::crd())),
    ]
}

/// Subtrees copied from Kubernetes: their descriptions are four fifths of the size, and `kubectl explain pod` has
/// them.
const FOREIGN: [&str; 6] =
    ["affinity", "tolerations", "resources", "topologySpreadConstraints", "egress", "conditions"];

fn finish(definition: &CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(definition).unwrap_or_default();
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        plain(schema);
        for field in FOREIGN {
            undescribe(schema, field);
        }
        merge_lists(schema);
        if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
            status.insert("default".into(), initial_status());
        }
    }
    value
}

/// What a resource says of itself before the operator has seen it: without this, waiting tools take a resource
/// without conditions for finished.
fn initial_status() -> Value {
    json!({"observedGeneration": -1, "conditions": [{"type": "Ready", "status": "Unknown", "reason": "Pending",
        "message": "waiting for the operator", "lastTransitionTime": "1970-01-01T00:00:00Z"}]})
}

/// Removes `nullable`, so that the API server drops nulls instead of storing them, and formats that it does not
/// know.
fn plain(schema: &mut Value) {
    each_schema(schema, &mut |map| {
        map.remove("nullable");
        if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
            map.remove("format");
        }
        if map.get("minimum").is_some_and(|minimum| minimum.as_f64() == Some(0.0)) {
            map.insert("minimum".into(), json!(0));
        }
    });
}

fn undescribe(schema: &mut Value, field: &str) {
    each_schema(schema, &mut |map| {
        if let Some(found) = map.get_mut("properties").and_then(|properties| properties.get_mut(field)) {
            let own = found.get("description").cloned();
            each_schema(found, &mut |inner| drop(inner.remove("description")));
            if let (Some(own), Some(found)) = (own, found.as_object_mut()) {
                found.insert("description".into(), own);
            }
        }
    });
}

/// Lists that several writers share, or that are applied piece by piece, are maps by a key.
fn merge_lists(schema: &mut Value) {
    let keys = [("conditions", "type", 16), ("nodes", "nodeId", status::MAX_NODES)];
    for (field, key, most) in keys {
        let path = format!("/properties/status/properties/{field}");
        let list = schema.pointer_mut(&path).and_then(Value::as_object_mut);
        if let Some(list) = list.filter(|list| list.get("type") == Some(&json!("array"))) {
            list.insert("x-kubernetes-list-type".into(), json!("map"));
            list.insert("x-kubernetes-list-map-keys".into(), json!([key]));
            list.insert("maxItems".into(), json!(most));
        }
    }
}

/// Calls `change` for a schema and for everything inside it.
fn each_schema(value: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            change(map);
            map.values_mut().for_each(|inner| each_schema(inner, change));
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| each_schema(inner, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_the_types_say() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for (file, definition) in definitions() {
            let wanted = serde_yaml::to_string(&definition).unwrap();
            for folder in ["crds", "charts/coproc/crds"] {
                let path = root.join(folder).join(file);
                if std::env::var_os("UPDATE").is_some() {
                    std::fs::create_dir_all(root.join(folder)).unwrap();
                    std::fs::write(&path, &wanted).unwrap();
                }
                let found = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(
                    found == wanted,
                    "{folder}/{file} is out of date: UPDATE=1 cargo test --features operator"
                );
            }
        }
    }

    #[test]
    fn short_names_are_not_taken_by_others() {
        let taken = ["po", "svc", "cm", "pl", "pvc", "cp", "rp", "pool", "pipe", "cr"];
        for (file, definition) in definitions() {
            let names = definition["spec"]["names"]["shortNames"].as_array().cloned().unwrap_or_default();
            assert!(!names.is_empty(), "{file}");
            assert!(names.iter().all(|name| !taken.contains(&name.as_str().unwrap_or_default())), "{file}");
        }
    }
}
