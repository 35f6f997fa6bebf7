//! The rights that the chart gives the operator.

use kube::Client;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use crate::cluster::api_of;
use crate::helm::render;

/// Installs the chart's Roles in a namespace, with these values besides: each right as `verb group/resource`.
pub async fn rules(client: &Client, namespace: &str, more: &[&str]) -> Vec<String> {
    let values = [&["operator.namespaced=true", "rbac.aggregate=false", "crds.apply=false"], more].concat();
    let text = render(namespace, &values).unwrap();
    let mut rights = Vec::new();
    for text in text.split("\n---\n").filter(|text| text.lines().any(|line| line.starts_with("kind:"))) {
        let document: Value = serde_yaml::from_str(text).unwrap();
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
