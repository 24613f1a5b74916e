"""The lines of code of the interface's documents, and the programs in examples/ that they stand in."""

from __future__ import annotations

MAIN = """
from models import PolicyInference
from models import PolicyReference
from models import PolicyTrainer
from models import RewardInference
from models import ValueInference
from models import ValueTrainer

import chatlearn
from chatlearn import RLHFEngine

# init
chatlearn.init()

# define models
policy_model = PolicyInference("policy")
reference_model = PolicyReference("reference")
reward_model = RewardInference("reward")
value_model = ValueInference("value")
ppo_policy_model = PolicyTrainer("ppo_policy")
ppo_value_model = ValueTrainer("ppo_value")

# define engine
engine = RLHFEngine(policy_model,
                    reference_model,
                    reward_model,
                    value_model,
                    ppo_policy_model,
                    ppo_value_model)

# set dataset
train_prompts = ["test"] * 4096
engine.set_dataset(train_prompts)

# start rlhf training
engine.learn()
"""

PROMPT_DATASET = '''
class PromptDataset(Dataset):
    """
    A custom dataset to construct batched prompts.
    """
    def __init__(self, data):
        self.data = data
    def __len__(self):
        return len(self.data)
    def __getitem__(self, idx):
        return {"query": self.data[idx]}
    def collate_fn(self, samples):
        batched_data = {}
        for sample_key, sample_value in samples.items():
            batched_data[sample_key] = torch.stack(sample_value)
        return batched_data
'''

POLICY_INFERENCE = '''
from chatlearn import RLHFTorchModule
class PolicyInference(RLHFTorchModule):
    def __init__(self, name):
        """
        Args:
            name: model name
        """
    def setup(self):
    def forward_step(self, data, iteration=0):
    def build_dataset(self, train_prompts):
'''

POLICY_TRAINER = """
from chatlearn import RLHFTorchModule
class PolicyTrainer(RLHFTorchModule):
    def setup(self):
    def train_step(self, data, train_info):
"""

CUSTOM_ENGINE = """
from chatlearn import BaseModule
class CustomEngine(Engine):
    def __init__(self,
                 reference: BaseModule,
                 policy_trainer: BaseModule):
        def env_flow(batch):
            ref_out = reference.forward_step(batch)
            return ref_out
        def trainer_flow(batch):
            policy_trainer.train_step(batch)
        env = Environment(env_flow)
        trainer = Trainer(trainer_flow)
        super().__init__(env, trainer)
"""

CUSTOM_CALLS = """
from chatlearn import Engine, Environment, Trainer
reference = PolicyReference("reference")
ppo_policy = PolicyTrainer("policy_trainer")
engine = CustomEngine(reference, ppo_policy) \\
         .set_dataset(train_prompts)
engine.learn()
"""

EVALUATOR_CALLS = """
reference = PolicyReference("reference")
ppo_policy = PolicyTrainer("policy_trainer")
def eval_flow(batch):
    r0 = reference.eval_step(batch)
    return r0
evaluator = Evaluator(eval_flow).set_dataset(val_prompts)
engine = CustomEngine(reference, ppo_policy) \\
         .set_evaluator(evaluator) \\
         .set_dataset(train_prompts)
engine.learn()
"""

DIRECT_CALLS = """
policy = PolicyInference("policy")
value = ValueInference("value")
reference = PolicyReference("reference")
reward = RewardInference("reward")
ppo_policy = PolicyTrainer("ppo_policy")
ppo_value = ValueTrainer("ppo_value")
def env_flow(batch):
    policy_out = policy.forward_step(batch)
    ref_out = reference.forward_step(policy_out)
    value_out = value.forward_step(policy_out)
    reward_out = reward.forward_step(policy_out, ref_out, value_out)
    return reward_out
def trainer_flow(batch):
    ppo_policy.train_step(batch)
    ppo_value.train_step(batch)
def eval_flow(batch):
    r0 = policy.eval_step(batch)
    r1 = reward.eval_step(r0)
    return r1
env = Environment(env_flow)
trainer = Trainer(trainer_flow)
evaluator = Evaluator(eval_flow).set_dataset(val_prompts)
engine = Engine(env, trainer, evaluator) \\
         .set_parameter_sync(ppo_policy, policy) \\
         .set_parameter_sync(ppo_value, value) \\
         .set_dataset(train_prompts)
engine.learn()
"""

WRITTEN = {
    "rlhf/main.py": [MAIN],
    "rlhf/models.py": [PROMPT_DATASET, POLICY_INFERENCE, POLICY_TRAINER],
    "custom_flow/custom_engine.py": [CUSTOM_ENGINE, CUSTOM_CALLS],
    "custom_flow/with_evaluator.py": [CUSTOM_ENGINE, EVALUATOR_CALLS],
    "custom_flow/direct_engine.py": [DIRECT_CALLS],
}
