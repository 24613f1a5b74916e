"""PPO with six models, every flow written out.

Run: python direct_engine.py -c direct_engine.yaml
"""

from models import PolicyInference, PolicyReference, PolicyTrainer, RewardInference, ValueInference, ValueTrainer

import chatlearn
from chatlearn import Engine, Environment, Evaluator, Trainer

chatlearn.init()
train_prompts = ["learn", "from", "words", "that", "have", "every", "letter", "quick", "jumps", "lazy", "box"]
val_prompts = ["other", "words", "unseen"]

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

engine = Engine(env, trainer, evaluator) \
         .set_parameter_sync(ppo_policy, policy) \
         .set_parameter_sync(ppo_value, value) \
         .set_dataset(train_prompts)
engine.learn()
