#!/bin/sh
# Starts tritonserver, in docker-compose.yml, deploy/kubernetes and deploy/kserve. Arguments are further flags for it.
set -eu

# What changes a server, or reads its files and memory, needs the key in this file. Without one the key is random, so
# that nothing can use these APIs.
key=$(cat "${TRITON_ADMIN_KEY_FILE:-/run/secrets/triton_admin_key}" 2>/dev/null || true)
[ -n "$key" ] || key=$(head -c 32 /dev/urandom | sha256sum | cut -c -64)
apis=${TRITON_RESTRICTED:-shared-memory,trace,logging}
case "${TRITON_FLAGS:-} $*" in *model-control-mode?explicit*) apis=model-repository,$apis ;; esac
restricted="$apis:admin-key=$key"

# shellcheck disable=SC2086 # TRITON_FLAGS holds any number of flags
exec tritonserver \
    --model-repository="${MODEL_REPOSITORY:-/models}" \
    --disable-auto-complete-config \
    --exit-on-error=false \
    --strict-readiness=false \
    --metrics-config=summary_latencies=true \
    --grpc-restricted-protocol="$restricted" \
    --http-restricted-api="$restricted" \
    ${TRITON_FLAGS:-} "$@"
