#!/bin/sh
# Prints prometheus-rule.yaml: rules.yaml as the Prometheus Operator wants it.
#
#   deploy/prometheus/operator-rule.sh >deploy/prometheus/prometheus-rule.yaml
set -eu
cd "$(dirname "$0")"
cat <<'END'
# rules.yaml as the Prometheus Operator wants it. Made by operator-rule.sh: change that file, not
# this one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: countersign
  labels: { app.kubernetes.io/name: countersign }
spec:
END
sed -n '/^groups:/,$s/^\(.\)/  \1/p; /^groups:/,$s/^$//p' rules.yaml
