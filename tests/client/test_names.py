from __future__ import annotations

from arcface_client.models.naming import is_plan, onnx_model, plan_model, sibling_of


def test_siblings_are_known_by_their_names() -> None:
    assert (onnx_model("a"), plan_model("a")) == ("a_onnx", "a_trt")
    assert is_plan("a_trt")
    assert not is_plan("a_onnx")
    assert sibling_of("a_trt_b_trt") == "a_trt_b_onnx"
    assert sibling_of("a_onnx") is None
