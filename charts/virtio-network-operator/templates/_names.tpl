{{- define "virtnet.name" -}}
{{ .Values.fullnameOverride }}
{{- end }}

{{- define "virtnet.labels" -}}
{{ include "virtnet.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* On pods: nothing that changes while the image does not. */ -}}
{{- define "virtnet.podLabels" -}}
{{ include "virtnet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* What never changes on an object: selectors are made of it. */ -}}
{{- define "virtnet.selector" -}}
app.kubernetes.io/name: virtio-network-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The agent's image: only who follows libvirt carries its client library along. */ -}}
{{- define "virtnet.agentImage" -}}
{{- $image := .Values.agent.image -}}
{{- if .Values.features.libvirt }}{{ $image = merge (dict "repository" $image.libvirtRepository) $image }}{{ end -}}
{{ include "virtnet.image" (list . $image) }}
{{- end }}

{{- /* The image of one component: (list $ .Values.agent.image). */ -}}
{{- define "virtnet.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end }}
