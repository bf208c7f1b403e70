# NVIDIA's TensorRT image with arcface-builder. Every package has one version: plans and ONNX models are stored under
# what made them, so that another ONNX Runtime or onnx would build again what the store has.
#
#   docker compose build builder
#
# `make lock` writes the list of versions anew.

ARG TRITON_RELEASE=26.11
FROM nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}-py3

ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT= PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY deploy/builder-requirements.txt /opt/
RUN python3 -m pip install --no-deps --requirement /opt/builder-requirements.txt
COPY . /opt/arcface-triton
RUN python3 -m pip install --no-deps /opt/arcface-triton && arcface-builder --version

USER 1000:1000
ENTRYPOINT ["arcface-builder"]
