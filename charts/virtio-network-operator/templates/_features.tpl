{{- /* What each feature of values.yaml costs: this file is the whole map. */ -}}

{{- define "virtnet.capabilities" -}}
{{- $needed := list "NET_ADMIN" -}}
{{- if .Values.features.ping }}{{ $needed = append $needed "NET_RAW" }}{{ end -}}
{{- if .Values.features.module }}{{ $needed = append $needed "SYS_MODULE" }}{{ end -}}
{{- if .Values.features.vhostUsers }}{{ $needed = concat $needed (list "SYS_PTRACE" "DAC_READ_SEARCH") }}{{ end -}}
{{ toJson $needed }}
{{- end }}

{{- define "virtnet.featureMounts" -}}
{{- if .Values.features.tapCreate }}
- name: tun
  mountPath: /dev/net/tun
{{- end }}
{{- if .Values.features.module }}
- name: modules
  mountPath: /lib/modules
  readOnly: true
- name: modprobe
  mountPath: /etc/modprobe.d
- name: modules-load
  mountPath: /etc/modules-load.d
{{- end }}
{{- if .Values.features.libvirt }}
- name: libvirt
  mountPath: /run/libvirt
  readOnly: true
{{- end }}
{{- end }}

{{- define "virtnet.featureVolumes" -}}
{{- if .Values.features.tapCreate }}
- name: tun
  hostPath:
    path: /dev/net/tun
    type: CharDevice
{{- end }}
{{- if .Values.features.module }}
- name: modules
  hostPath:
    path: /lib/modules
    type: Directory
- name: modprobe
  hostPath:
    path: /etc/modprobe.d
    type: DirectoryOrCreate
- name: modules-load
  hostPath:
    path: /etc/modules-load.d
    type: DirectoryOrCreate
{{- end }}
{{- if .Values.features.libvirt }}
- name: libvirt
  hostPath:
    path: {{ .Values.agent.libvirtDir }}
    # A node without libvirt has an agent all the same, and so has one whose libvirt starts later.
    type: DirectoryOrCreate
{{- end }}
{{- end }}
