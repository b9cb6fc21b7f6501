"""A node's image service for the kubelet (Kubernetes CRI): the only place that knows gRPC and protos."""
