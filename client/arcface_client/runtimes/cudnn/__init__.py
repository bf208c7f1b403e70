"""cuDNN: the serving graph of an IResNet in FP16 or int8 as fused kernels.

::

    network   the layers
    reader    what the ONNX file holds, as layers; refuses other graphs
    kernels   the first layer and the last step, in CUDA C++
    fused     the layers between them, as cuDNN graphs
    plans     which of cuDNN's kernels is fastest for a layer
    loaded    all of it on a GPU
    runtime   ``Cudnn``, which embeds

It needs a GPU of compute capability 8.0 or newer.
"""
