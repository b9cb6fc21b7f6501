{{- define "nixery-snap.name" -}}
{{- $long := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $long | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "nixery-snap.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "nixery-snap.selector" . }}
{{- end }}

{{- define "nixery-snap.selector" -}}
app.kubernetes.io/name: nixery-snap
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: registry
{{- end }}

{{- define "nixery-snap.nodeSelectorLabels" -}}
app.kubernetes.io/name: nixery-snap
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: image-service
{{- end }}

{{/* What a pod's surroundings say, below what the values say. */}}
{{- define "nixery-snap.settings" -}}
{{- $given := dict
  "listen" "0.0.0.0:8080"
  "storage" "file:///var/lib/nixery-snap/storage"
  "cache_directory" "/var/cache/nixery-snap"
  "nix" (dict "store" "/var/lib/nixery-snap/nix")
-}}
{{- if .Values.signingKeySecret }}
{{- $_ := set $given "binary_cache" (dict "signing_key_file" "/run/secrets/signing-key/signing-key") }}
{{- end }}
{{- if .Values.metrics.enabled }}
{{- $_ := set $given "metrics" (dict "listen" (printf "0.0.0.0:%d" (int .Values.metrics.port))) }}
{{- end }}
{{- mergeOverwrite $given .Values.settings | toToml }}
{{- end }}
