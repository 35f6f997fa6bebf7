{{- define "coproc.name" -}}
{{- if contains "coproc" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-coproc" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "coproc.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "coproc.selector" -}}
app.kubernetes.io/name: coproc
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "coproc.labels" -}}
{{ include "coproc.selector" . }}
app.kubernetes.io/part-of: coproc
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "coproc.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "coproc.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What the operator may do in the namespaces that it watches. A test compares this with what it does. */}}
{{- define "coproc.rules" -}}
- apiGroups: [coproc.dev]
  resources: [runtimepools, coprocessors, pipelines]
  verbs: [list, watch, patch]
- apiGroups: [coproc.dev]
  resources: [runtimepools/status, coprocessors/status, pipelines/status]
  verbs: [patch]
# For blockOwnerDeletion where the API server checks it, and to set finalizers.
- apiGroups: [coproc.dev]
  resources: [runtimepools/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts, configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# Those that pools name, one by one: no list, no watch.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
# Whether a namespace is being deleted.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
