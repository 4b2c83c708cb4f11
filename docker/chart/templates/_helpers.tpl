{{- define "abmll.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end }}
{{- end }}

{{- define "abmll.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "abmll.labels" -}}
{{ include "abmll.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "abmll.onlyOneReplica" -}}
{{- if and (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) (not .Values.separateStores) (not .Values.settings.store_url) }}
{{- fail "replicas > 1 or autoscaling.enabled: each replica has a disk of its own and finds only the adapters that it made. Set settings.store_url to a store that all share, or separateStores: true if callers send their examples with each request, or always reach the same replica" }}
{{- end }}
{{- end }}
