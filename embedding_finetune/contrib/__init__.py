"""Optional features: BGE-M3 scores, ONNX and OpenVINO export, Ray, index advisor, publishing."""
