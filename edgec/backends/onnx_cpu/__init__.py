"""ONNX Runtime on CPUs: the artifact is a directory that onnxruntime and onnxruntime-genai load as it stands."""
