# NVIDIA's Triton with this project's packages, for the models that its Python backend runs: {name}_cudnn. All others
# need nothing but NVIDIA's image.
#
#   docker compose build triton
#
# The image brings cuDNN. NVRTC, CUDA's compiler, is of the CUDA version that cuda-bindings has.

ARG TRITON_RELEASE=26.11
FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3

COPY . /opt/arcface-triton
RUN python3 -m pip install --no-cache-dir --break-system-packages \
    "/opt/arcface-triton[cudnn]" "cuda-bindings<14" "nvidia-cuda-nvrtc<14"
