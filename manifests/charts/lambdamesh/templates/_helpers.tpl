{{/* The one namespace that the programs know. */}}
{{- define "lambdamesh.namespace" -}}lambdamesh-system{{- end }}

{{/* metadata of an object of the system namespace: name, namespace, labels. */}}
{{- define "lambdamesh.metadata" -}}
name: {{ . }}
namespace: lambdamesh-system
labels:
  app.kubernetes.io/name: {{ . | trimSuffix "-public" | trimSuffix "-outbound" | trimSuffix "-headless" }}
  app.kubernetes.io/part-of: lambdamesh
{{- end }}

{{- define "lambdamesh.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "lambdamesh.proxyImage" -}}
{{ .Values.proxy.image | default (include "lambdamesh.image" (dict "root" . "name" "proxy")) }}
{{- end }}

{{/* A pod as the pod security standard "restricted" wants it. One user for all of
its containers, so that they share sockets and tokens. */}}
{{- define "lambdamesh.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "lambdamesh.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* What every pod of ours has: who it is, on which nodes, before whom. */}}
{{- define "lambdamesh.pod" -}}
serviceAccountName: {{ .name }}
priorityClassName: lambdamesh-system
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        app.kubernetes.io/name: {{ .name }}
{{- end }}

{{/* Probes of our programs' admin port. */}}
{{- define "lambdamesh.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}

{{/* Nine tenths of a memory limit, for Go's garbage collector. */}}
{{- define "lambdamesh.goMemoryLimit" -}}
{{ div (mul (include "lambdamesh.bytes" .) 9) 10485760 }}MiB
{{- end }}

{{- define "lambdamesh.targets" -}}
{{- range .Values.targets.allow }}
- --allow-target={{ . }}
{{- end }}
{{- range .Values.targets.serviceCIDRs }}
- --service-cidr={{ . }}
{{- end }}
{{- end }}

{{/* A memory limit in Mi or Gi, in bytes. */}}
{{- define "lambdamesh.bytes" -}}
{{- $limit := toString . -}}
{{- if hasSuffix "Gi" $limit -}}
{{ mul (trimSuffix "Gi" $limit | int64) 1073741824 }}
{{- else -}}
{{ mul (trimSuffix "Mi" $limit | int64) 1048576 }}
{{- end -}}
{{- end }}

{{/* A member of the mesh "envoy": the sidecar, as the control plane gives it to
lambdas (pkg/sidecar; a test holds them equal). The application and its sidecar
share a directory, and the application is to be reached there only. */}}
{{- define "lambdamesh.sidecar" -}}
- name: mesh-proxy
  image: {{ include "lambdamesh.proxyImage" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # A sidecar: it starts before the containers and ends after them.
  restartPolicy: Always
  args:
    - --config-path
    - /var/run/lambdamesh/mesh/envoy.yaml
    - --service-cluster
    - $(POD_NAMESPACE)
    - --service-node
    - pod~$(POD_NAMESPACE)~$(POD_NAME)
    - --drain-time-s
    - "30"
  env:
    - name: POD_NAME
      valueFrom:
        fieldRef: {apiVersion: v1, fieldPath: metadata.name}
    - name: POD_NAMESPACE
      valueFrom:
        fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
    - name: GOMEMLIMIT
      value: {{ div (mul (include "lambdamesh.bytes" .Values.proxy.resources.limits.memory) 9) 10 | quote }}
  ports:
    - {name: http, containerPort: 15006, protocol: TCP}
    - {name: mesh-ready, containerPort: 15021, protocol: TCP}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    capabilities:
      drop: [ALL]
    seccompProfile:
      type: RuntimeDefault
  startupProbe:
    httpGet: {path: /ready, port: mesh-ready, scheme: HTTP}
    periodSeconds: 1
    timeoutSeconds: 2
    failureThreshold: 600
  readinessProbe:
    httpGet: {path: /ready, port: mesh-ready, scheme: HTTP}
    periodSeconds: 5
    timeoutSeconds: 2
    failureThreshold: 2
  resources:
    {{- toYaml .Values.proxy.resources | nindent 4 }}
  volumeMounts:
    - {name: mesh-app, mountPath: /var/run/lambdamesh/app}
    - {name: mesh-identity, mountPath: /var/run/lambdamesh/mesh, readOnly: true}
{{- end }}

{{/* What a data plane needs to know the control plane and be known to it. The
control plane makes the ConfigMap. */}}
{{- define "lambdamesh.meshVolume" -}}
- name: mesh-identity
  projected:
    sources:
      - serviceAccountToken:
          audience: lambdamesh-xds
          # Renewed by the kubelet at 80%; the proxy reads the file again.
          expirationSeconds: 3600
          path: token
      - configMap:
          name: lambdamesh-mesh
{{- end }}

{{- define "lambdamesh.sidecarVolumes" -}}
- name: mesh-app
  emptyDir: {}
{{ include "lambdamesh.meshVolume" . }}
{{- end }}

{{/* Space in a server's volume, in bytes: what is below the size of the volume,
so that a full store is a refusal and no crash. */}}
{{- define "lambdamesh.storageTenths" -}}
{{ div (mul (trimSuffix "Gi" .root.Values.nats.storage.size | int64) 1073741824 .tenths) 10 }}
{{- end }}
