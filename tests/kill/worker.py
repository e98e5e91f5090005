"""An Airflow worker that a test can watch: it runs tries of a task, each in a process of its own, one by one.

It does what an executor's worker does. Airflow 3: the supervisor forks the task's process and serves it the
Execution API, here in this process, over the metadata database. Airflow 2: the local task job forks it. Only
the scheduler is left out: what it does about a task whose process is gone, and before the next try, is done
here; a line on stdin starts a try.

Lines on stdin: ``{"run_id": ..., "task_id": ..., "conf": {...}}``. Lines on stdout: ``{"ready": true}``, then
for each try ``{"pid": ...}`` and ``{"state": ..., "try_number": ...}``. Everything that Airflow logs goes to
the file that is the only argument.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

DAG_ID, FILE = "members", "members.py"


def main():
    control = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def tell(**facts):
        control.write(json.dumps(facts) + "\n")

    import airflow  # noqa: PLC0415 - its log goes to the file

    worker = (Worker3 if airflow.__version__ >= "3" else Worker2)()
    tell(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        worker.run(order["run_id"], order["task_id"], order["conf"], tell)


class Worker3:
    def __init__(self):
        from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415
        from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor  # noqa: PLC0415
        from airflow.utils.db import initdb  # noqa: PLC0415

        initdb()
        manager = DagBundlesManager()
        manager.sync_bundles_to_db()
        (bundle,) = manager.get_all_dag_bundles()
        try:
            from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db  # noqa: PLC0415

            bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        except ImportError:
            from airflow.models.dagbag import DagBag, sync_bag_to_db  # noqa: PLC0415

            bag = DagBag(dag_folder=bundle.path, bundle_path=bundle.path, include_examples=False)
        assert not bag.import_errors, bag.import_errors
        sync_bag_to_db(bag, bundle.name, None)
        self.bundle = bundle.name
        self.client = InProcessTestSupervisor._api_client(bag.dags[DAG_ID])

    def run(self, run_id, task_id, conf, tell):
        from airflow.executors.workloads import BundleInfo, ExecuteTask  # noqa: PLC0415
        from airflow.sdk.execution_time.supervisor import ActivitySubprocess  # noqa: PLC0415

        instance = self._queued(run_id, task_id, conf)
        workload = ExecuteTask.make(
            instance, dag_rel_path=Path(FILE), bundle_info=BundleInfo(name=self.bundle)
        )
        process = ActivitySubprocess.start(
            what=workload.ti,
            dag_rel_path=workload.dag_rel_path,
            bundle_info=workload.bundle_info,
            client=self.client,
        )
        tell(pid=process.pid)
        process.wait()
        state, try_number = self._ended(run_id, task_id)
        tell(state=state, try_number=try_number)

    @staticmethod
    def _ended(run_id, task_id):
        """What the scheduler does after a try."""
        from airflow.models.dagbag import DBDagBag  # noqa: PLC0415
        from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415
        from airflow.utils.session import create_session  # noqa: PLC0415

        with create_session() as session:
            instance = (
                session.query(TaskInstance).filter_by(dag_id=DAG_ID, run_id=run_id, task_id=task_id).one()
            )
            if instance.state == "running":
                dag = DBDagBag().get_dag_for_run(dag_run=instance.dag_run, session=session)
                instance.task = dag.get_task(task_id)
                instance.handle_failure("The process is gone.", session=session)
            return instance.state, instance.try_number

    @staticmethod
    def _queued(run_id, task_id, conf):
        """What the scheduler does before a try."""
        from airflow.api.common.trigger_dag import trigger_dag  # noqa: PLC0415
        from airflow.models.dagrun import DagRun  # noqa: PLC0415
        from airflow.utils.session import create_session  # noqa: PLC0415
        from airflow.utils.types import DagRunTriggeredByType  # noqa: PLC0415

        with create_session() as session:
            run = session.query(DagRun).filter_by(dag_id=DAG_ID, run_id=run_id).one_or_none()
            if run is None:
                trigger_dag(
                    DAG_ID, run_id=run_id, conf=conf, triggered_by=DagRunTriggeredByType.TEST, session=session
                )
                run = session.query(DagRun).filter_by(dag_id=DAG_ID, run_id=run_id).one()
            run.state = "running"
            instance = run.get_task_instance(task_id, session=session)
            instance.state = "queued"
            instance.try_number += 1
            session.flush()
            session.refresh(instance)
            session.expunge_all()
        return instance


class Worker2:
    def __init__(self):
        from airflow.models.dagbag import DagBag  # noqa: PLC0415
        from airflow.utils.db import initdb  # noqa: PLC0415

        initdb()
        self.bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], include_examples=False)
        assert not self.bag.import_errors, self.bag.import_errors
        self.bag.sync_to_db()

    def run(self, run_id, task_id, conf, tell):
        import psutil  # noqa: PLC0415
        from airflow.cli.cli_parser import get_parser  # noqa: PLC0415
        from airflow.models.dagrun import DagRun  # noqa: PLC0415
        from airflow.utils.session import create_session  # noqa: PLC0415

        dag = self.bag.get_dag(DAG_ID)
        found = DagRun.find(dag_id=DAG_ID, run_id=run_id)
        run = (
            found[0]
            if found
            else dag.create_dagrun(
                run_id=run_id,
                state="running",
                execution_date=datetime.now(UTC),
                run_type="manual",
                conf=conf,
                data_interval=(datetime.now(UTC), datetime.now(UTC)),
            )
        )
        instance = run.get_task_instance(task_id)
        instance.set_state("queued")
        instance.try_number += 1
        with create_session() as session:
            session.merge(instance)
        before = {child.pid for child in psutil.Process().children()}

        def watch():
            while True:
                new = {child.pid for child in psutil.Process().children()} - before
                if new:
                    return tell(pid=new.pop())
                time.sleep(0.002)

        threading.Thread(target=watch, daemon=True).start()
        file = str(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / FILE)
        parsed = get_parser().parse_args(
            ["tasks", "run", "--local", "--subdir", file, DAG_ID, task_id, run_id]
        )
        parsed.shut_down_logging = False
        parsed.func(parsed)
        instance.refresh_from_db()
        if instance.state == "running":
            # So does the scheduler with a task whose process is gone.
            instance.task = dag.get_task(task_id)
            instance.handle_failure("the process is gone")
            instance.refresh_from_db()
        tell(state=instance.state, try_number=instance.try_number)


main()
