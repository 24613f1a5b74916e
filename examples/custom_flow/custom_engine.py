"""An engine of two models: the trainer learns from the answers of the reference.

Run: python custom_engine.py -c custom_engine.yaml
"""

from models import PolicyReference, PolicyTrainer

import chatlearn
from chatlearn import Engine, Environment, Trainer
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


chatlearn.init()
train_prompts = ["learn", "from", "words", "that", "have", "every", "letter", "quick", "jumps", "lazy", "box"]

reference = PolicyReference("reference")
ppo_policy = PolicyTrainer("policy_trainer")

engine = CustomEngine(reference, ppo_policy) \
         .set_dataset(train_prompts)
engine.learn()
