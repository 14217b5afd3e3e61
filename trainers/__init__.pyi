from trainers.api import evaluate as evaluate
from trainers.api import load_experiment as load_experiment
from trainers.api import load_report as load_report
from trainers.api import plan as plan
from trainers.api import run as run
from trainers.api import sweep as sweep
from trainers.config.experiment import Experiment as Experiment
from trainers.report.results import Results as Results
