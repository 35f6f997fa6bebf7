//! The chart, rendered by the real Helm.

use std::path::PathBuf;
use std::process::{Command, Output};

use kube::Client;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use crate::cluster::api_of;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs Helm of the cache; it is built the first time.
pub fn helm(arguments: &[&str]) -> Output {
    let built = Command::new(root().join("tests/env/kube")).args(["build", "helm"]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let helm = String::from_utf8(built.stdout).unwrap();
    Command::new(helm.trim()).args(arguments).current_dir(root()).output().unwrap()
}

/// The documents that the chart makes.
pub fn render(namespace: &str, sets: &[&str]) -> Result<Vec<Value>, String> {
    let mut arguments =
        vec!["template", "coproc", "charts/coproc", "--namespace", namespace, "--kube-version", "1.34.0"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let output = helm(&arguments);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = text.split("\n---\n").filter(|text| text.lines().any(|line| line.starts_with("kind:")));
    Ok(documents
        .map(|text| serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}")))
        .collect())
}

/// Installs the operator's Roles in a namespace: each right as `verb group/resource`.
pub async fn rules(client: &Client, namespace: &str) -> Vec<String> {
    let documents =
        render(namespace, &["operator.namespaced=true", "rbac.aggregate=false", "crds.apply=false"]);
    let mut rights = Vec::new();
    for document in documents.unwrap() {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        let group = match kind.as_str() {
            "ServiceAccount" => "",
            "Role" | "RoleBinding" => "rbac.authorization.k8s.io",
            _ => continue,
        };
        let name = document["metadata"]["name"].as_str().unwrap().to_owned();
        let api = api_of(client, group, "v1", &kind, Some(namespace));
        api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&document)).await.unwrap();
        for rule in document["rules"].as_array().into_iter().flatten() {
            let texts = |field: &str| -> Vec<String> {
                let list = rule[field].as_array().cloned().unwrap_or_default();
                list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
            };
            for (group, resource) in texts("apiGroups").iter().flat_map(|group| {
                texts("resources").into_iter().map(move |resource| (group.clone(), resource))
            }) {
                rights.extend(texts("verbs").iter().map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    rights
}
