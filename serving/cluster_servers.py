"""The model servers of a revision in a cluster, and how each is asked for its figures."""

from __future__ import annotations

from collections.abc import Mapping

from serving.cluster import ClusterError
from serving.cluster_access import Access, Ask
from serving.cluster_gateway import takes_requests
from serving.cluster_view import View
from serving.image_context import PORT
from serving.kubernetes_objects import NAME, name_of


class ModelServers:
    """Those that take requests; one that was started again is another server."""

    def __init__(self, view: View, access: Access) -> None:
        self._view, self._access = view, access

    def of(self, revision: str) -> Mapping[str, Ask]:
        """How each server of the revision is asked, by a name that none before it had. Raises `OSError`."""
        try:
            pods = [pod for pod in self._view.pods(NAME).get(name_of(revision), ()) if takes_requests(pod)]
        except ClusterError as error:
            raise OSError(str(error)) from error
        return {
            f"{pod['metadata']['uid']}/{sum(one['restartCount'] for one in pod['status']['containerStatuses'])}": (
                self._access.pod(pod["metadata"]["name"], pod["status"]["podIP"], PORT, {})
            )
            for pod in pods
        }
