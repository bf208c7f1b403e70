# NVIDIA's Triton with this project's packages, for the models that its Python backend runs: {name}_cudnn. All others
# need nothing but NVIDIA's image.
#
#   docker compose build triton
#
# The image brings cuDNN and numpy. NVRTC, CUDA's compiler, is of the CUDA version that cuda-bindings has. `make lock`
# writes the list of versions anew.

ARG TRITON_RELEASE=26.11
FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3

ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT= PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY deploy/triton-requirements.txt /opt/
RUN python3 -m pip install --no-deps --requirement /opt/triton-requirements.txt
COPY . /opt/arcface-triton
COPY deploy/kubernetes/base/serve.sh /usr/local/bin/
RUN python3 -m pip install --no-deps /opt/arcface-triton
