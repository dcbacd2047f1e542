"""k-means for neurons, computed on inner products."""

from mlpfusion.cluster.kmeans import KMeansResult as KMeansResult
from mlpfusion.cluster.kmeans import kmeans as kmeans
from mlpfusion.cluster.kmeans import kmeans_batched as kmeans_batched
