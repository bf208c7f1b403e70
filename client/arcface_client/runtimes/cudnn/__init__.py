"""cuDNN: the serving graph of an IResNet in FP16 as fused kernels, for GPUs from compute capability 8.0.

::

    network   what the ONNX file holds, as layers; refuses other graphs
    kernels   the first layer and the last step, in CUDA C++
    fused     the layers between them, as cuDNN graphs
    plans     which of cuDNN's kernels is fastest for a layer
    loaded    all of it on a GPU
    runtime   ``Cudnn``, which embeds
"""
