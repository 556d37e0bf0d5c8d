"""What is started, as files for other programs."""

import sys

import pytest
import yaml

import app
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.replicas import start
from gemma3_core.replicas.options import IMPORT_PATH, ReplicaOptions, kuberay_manifest, printed, serve_config


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ({}, (1, 1, 1)),
        ({"replicas": 3}, (3, 3, 3)),
        ({"replicas": 2, "max_replicas": 5}, (2, 2, 5)),
        ({"min_replicas": 2, "max_replicas": 5}, (2, 2, 5)),
        ({"max_replicas": 4}, (1, 1, 4)),
        ({"replicas": 3, "min_replicas": 1}, (1, 3, 3)),
    ],
)
def test_numbers_that_are_left_open_follow_from_the_others(numbers, found):
    options = ReplicaOptions(**numbers)
    assert (options.fewest, options.first, options.most) == found
    assert options.scales == (found[0] != found[2])
    assert ("autoscaling_config" in options.deployment) == options.scales


@pytest.mark.parametrize("numbers", [{"replicas": 2, "min_replicas": 3}, {"replicas": 5, "max_replicas": 4}])
def test_numbers_that_exclude_one_another_are_an_error(numbers):
    with pytest.raises(UnsupportedOptionError, match="must not become smaller"):
        ReplicaOptions(**numbers)


def test_gpus_and_threads_follow_from_the_machine_where_nothing_is_said():
    assert ReplicaOptions({"device": "auto"}).settled(True, 8).gpus == 1
    assert ReplicaOptions({"device": "cpu"}).settled(True, 8).gpus == 0
    assert ReplicaOptions({"device": "cuda"}).settled(False, None).gpus == 1
    assert ReplicaOptions(gpus=0.5).settled(True, 8).gpus == 0.5
    assert ReplicaOptions(replicas=2, max_replicas=4).settled(False, 8).threads == 2
    assert ReplicaOptions(replicas=4).settled(False, 2).threads == 1
    assert ReplicaOptions(replicas=4).settled(False, None).threads is None


def test_a_replica_that_hangs_is_found_within_30_seconds():
    found = ReplicaOptions().deployment
    assert 3 * found["health_check_timeout_s"] + 3 * found["health_check_period_s"] < 30


@pytest.fixture(scope="module")
def settings():
    arguments = ["--replicas", "2", "--max-replicas", "4", "--device", "cuda", "--also", "owner/a b".replace(" ", "-")]
    return app.parse([*arguments, "--at-once", "4", "--print-config", "kuberay"], {})


def test_serve_reads_the_config_file_and_builds_the_application_that_we_start(settings):
    pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")
    from ray.serve.schema import ServeDeploySchema

    from gemma3_core.replicas.deployment import application, built

    options = app.replica_options(settings)
    text = printed(options, "serve")
    config = yaml.safe_load(text)
    schema = ServeDeploySchema.model_validate(config)
    assert schema.applications[0].import_path == IMPORT_PATH
    asked = schema.applications[0].deployments[0]
    assert asked.autoscaling_config["max_replicas"] == 4
    assert asked.ray_actor_options.num_gpus == 1

    ours = built(options.settled(False, None))._bound_deployment
    deployed = application(config["applications"][0]["args"])._bound_deployment
    assert deployed.name == ours.name == asked.name
    assert deployed.init_kwargs == ours.init_kwargs
    assert ours.init_kwargs["models"]["at_once"] == 4


def test_the_manifest_for_kuberay_has_the_same_config_and_pages_that_find_the_cluster(settings):
    options = app.replica_options(settings)
    service, pages, front = yaml.safe_load_all(printed(options, "kuberay"))
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    settled = options.settled(False, None)
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load(printed(options, "serve"))
    assert kuberay_manifest(settled)[0] == service

    cluster = service["spec"]["rayClusterConfig"]
    workers = cluster["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (2, 2, 4)
    pods = [
        cluster["headGroupSpec"]["template"]["spec"],
        workers["template"]["spec"],
        pages["spec"]["template"]["spec"],
    ]
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"], "KubeRay deploys through it"
    ports = [pod["containers"][0]["readinessProbe"].get("tcpSocket", {}).get("port") for pod in pods]
    assert ports == [6379, 52365, None], "KubeRay's own probes need wget, and a proxy of Serve on each worker"
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert len(images) == 1, "all machines run one version"
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for pod in pods:
        names = {variable["name"] for variable in pod["containers"][0]["env"]}
        assert {"RAY_USAGE_STATS_ENABLED", "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"} <= names

    command = pages["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    page = app.parse(command.partition("python app.py ")[2].split(), {})
    assert page.ray == "auto"
    assert app.replica_options(page).models == options.models
    assert front["spec"]["selector"] == pages["spec"]["selector"]["matchLabels"]
    assert front["spec"]["sessionAffinity"] == "ClientIP"


def test_a_manifest_whose_pages_would_lack_the_login_is_refused(capsys):
    arguments = ["--replicas", "2", "--auth", "ada:secret", "--api-key", "12345678", "--print-config", "kuberay"]
    with pytest.raises(SystemExit, match=r"does not carry --api-key, --auth\. Add them to the pages' command"):
        app.print_config(app.parse(arguments, {}))
    assert capsys.readouterr().out == ""
    app.print_config(app.parse([*arguments[:-1], "serve"], {}))  # the file for `serve deploy` has no pages
    assert "secret" not in capsys.readouterr().out


def test_a_replica_whose_model_several_processes_share_has_a_bundle_for_each(monkeypatch):
    arguments = ["--replicas", "2", "--tensor-parallel", "4", "--device", "cuda", "--print-config", "kuberay"]
    options = app.replica_options(app.parse(arguments, {}))
    asked = options.settled(False, None).deployment
    assert asked["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 1.0}] * 4
    assert asked["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 1.0}, "the replica itself is in the first"
    service, pages, _ = yaml.safe_load_all(printed(options, "kuberay"))
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "4"
    command = pages["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    page = app.parse(command.partition("python app.py ")[2].split(), {})
    assert app.replica_options(page).models == options.models

    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert len(config.applications[0].deployments[0].placement_group_bundles) == 4
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    with pytest.raises(UnsupportedOptionError, match="2 replicas take 8 GPUs, and there are 4"):
        start._check_room(options.settled(True, 8))


def test_a_shared_model_is_alone_and_in_full_precision():
    for more in ({"int4": True}, {"also": ["owner/other"]}, {"adapters": ["owner/adapter"]}):
        with pytest.raises(UnsupportedOptionError, match="Leave out --also, --adapter and --int4"):
            ReplicaOptions({"tensor_parallel": 2, **more})


def test_requirements_and_manifest_name_one_version():
    from places import REPOSITORY

    from gemma3_core.replicas.options import RAY_VERSION

    assert f"ray[serve]=={RAY_VERSION}" in (REPOSITORY / "requirements" / "ray.txt").read_text()


def test_without_ray_a_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(start, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["app.py", "--replicas", "2"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert str(end.value) == (
        "app.py: Replicas need Ray, which is not installed. Install it with `pip install -r requirements/ray.txt`."
    )


def test_the_app_prints_the_config_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--replicas", "2", "--print-config", "serve"])
    app.main()
    assert yaml.safe_load(capsys.readouterr().out) == serve_config(
        app.replica_options(app.parse(["--replicas", "2"], {})).settled(False, None)
    )


def test_lists_of_this_machines_models_and_replicas_exclude_one_another(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", "--replicas", "2", "--print-config", "serve", "--find"])
    with pytest.raises(SystemExit, match="--find and --look-in"):
        app.main()


def test_what_a_visitor_may_be_told_is_said_in_german_too():
    import json

    from places import REPOSITORY

    from gemma3_core.replicas.replica import OTHER_VERSION

    pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")
    from gemma3_core.replicas.fleet import NO_REPLICA
    from gemma3_core.replicas.remote import LOST

    words = json.loads((REPOSITORY / "assets" / "words" / "de.json").read_text(encoding="utf-8"))
    assert {LOST, NO_REPLICA, OTHER_VERSION} <= words.keys()
