"""A real cluster of one machine, for every module of tests that asks for it."""

from __future__ import annotations

import socket

import pytest

from tests.orchestrator import recipes, scored

HEAD_CPUS = 2


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one machine, joined by this process; machines can be added."""
    import ray
    from ray.cluster_utils import Cluster

    for module in (recipes, scored):  # tests are not installed in workers: their classes travel with the recipe
        ray.cloudpickle.register_pickle_by_value(module)
    with socket.create_server(("127.0.0.1", 0)) as free:
        client_port = free.getsockname()[1]
    head = {"num_cpus": HEAD_CPUS, "include_dashboard": False, "ray_client_server_port": client_port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.client_address = f"ray://127.0.0.1:{client_port}"
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
