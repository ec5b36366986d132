{{- define "leno.selector" -}}
app.kubernetes.io/name: leno-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leno.labels" -}}
{{ include "leno.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: leno
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
