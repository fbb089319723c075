{{- define "sidestream.image" -}}
{{- if .Values.image.digest }}
{{- .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}
{{- .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "sidestream.injectorImage" -}}
{{- with .Values.injector.image }}
{{- if .digest }}
{{- .repository }}@{{ .digest }}
{{- else }}
{{- .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sidestream.injector" -}}
{{ printf "%s-injector" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sidestream.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sidestream.injectorSelector" -}}
app.kubernetes.io/name: sidestream-injector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
