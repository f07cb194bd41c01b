"""Features with requirements of their own: BGE-M3, ONNX and OpenVINO, Ray, publishing."""
