{{- /* The operator's Prometheus configuration: addresses and file names only, what is secret is mounted from Secrets below
/etc/sluice/prometheus-secrets. What the operator would refuse at its start is refused here, by the names of the values. */ -}}
{{- define "sluice.prometheusConfig" -}}
{{- $servers := dict -}}
{{- range $name, $server := .Values.prometheus.servers -}}
  {{- $dir := printf "/etc/sluice/prometheus-secrets/%s" $name -}}
  {{- $at := printf "prometheus.servers.%s" $name -}}
  {{- $url := required (printf "%s.url is needed: the Prometheus that scrapes the sidecars, for example --set %s.url=http://prometheus-server.monitoring.svc" $at $at) $server.url -}}
  {{- if regexMatch "^https?://[^/?#]*@" $url -}}
    {{- fail (printf "%s.url must not hold a login: it would appear in logs; put it into a Secret and name that in %s.basicAuthSecret" $at $at) -}}
  {{- end -}}
  {{- if regexMatch "[?#]" $url -}}
    {{- fail (printf "%s.url must end with the path, without ? and #: %s" $at $url) -}}
  {{- end -}}
  {{- if not (regexMatch "^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/.*)?$" $url) -}}
    {{- fail (printf "%s.url must name a host, and a port if need be: %s" $at $url) -}}
  {{- end -}}
  {{- if and $server.bearerTokenSecret $server.basicAuthSecret -}}
    {{- fail (printf "%s.bearerTokenSecret excludes basicAuthSecret: both set the header Authorization; leave one of them out" $at) -}}
  {{- end -}}
  {{- range $header, $value := $server.headers -}}
    {{- if not (regexMatch "^[A-Za-z0-9!#$%&'*+.^_|~-]+$" $header) -}}
      {{- fail (printf "%s.headers: %q is not the name of a header" $at $header) -}}
    {{- end -}}
    {{- if regexMatch "[\\x00-\\x08\\x0a-\\x1f\\x7f]" $value -}}
      {{- fail (printf "%s.headers.%s: the value is not that of a header: it has several lines or control characters" $at $header) -}}
    {{- end -}}
    {{- if and (eq (lower $header) "authorization") (or $server.bearerTokenSecret $server.basicAuthSecret) -}}
      {{- fail (printf "%s.headers.%s is set by bearerTokenSecret or basicAuthSecret; leave it out" $at $header) -}}
    {{- end -}}
  {{- end -}}
  {{- if and $server.caSecret (not (hasPrefix "https://" $url)) -}}
    {{- fail (printf "%s.caSecret needs a url that begins with https://; leave it out for %s" $at $url) -}}
  {{- end -}}
  {{- $entry := dict "url" $url -}}
  {{- with $server.timeoutSeconds }}{{ $_ := set $entry "timeoutSeconds" (int .) }}{{ end -}}
  {{- with $server.staleAfterSeconds }}{{ $_ := set $entry "staleAfterSeconds" (int .) }}{{ end -}}
  {{- with $server.maxResponseBytes }}{{ $_ := set $entry "maxResponseBytes" (int .) }}{{ end -}}
  {{- with $server.allowedNamespaces }}{{ $_ := set $entry "allowedNamespaces" . }}{{ end -}}
  {{- with $server.headers }}{{ $_ := set $entry "headers" . }}{{ end -}}
  {{- with $server.bearerTokenSecret }}{{ $_ := set $entry "bearerTokenFile" (printf "%s/token" $dir) }}{{ end -}}
  {{- with $server.basicAuthSecret }}{{ $_ := set $entry "basicAuth" (dict "usernameFile" (printf "%s/username" $dir) "passwordFile" (printf "%s/password" $dir)) }}{{ end -}}
  {{- with $server.caSecret }}{{ $_ := set $entry "caFile" (printf "%s/ca.crt" $dir) }}{{ end -}}
  {{- $_ := set $servers $name $entry -}}
{{- end -}}
{{- toYaml (dict "servers" $servers) -}}
{{- end -}}
