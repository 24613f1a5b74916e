"""The engine of custom_engine.py, with an evaluation after every second episode.

Run: python with_evaluator.py -c custom_engine.yaml runtime.exp_name=with_evaluator
"""

from models import PolicyReference, PolicyTrainer

import chatlearn
from chatlearn import Engine, Environment, Evaluator, Trainer
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
val_prompts = ["other", "words", "unseen"]

reference = PolicyReference("reference")
ppo_policy = PolicyTrainer("policy_trainer")
def eval_flow(batch):
    r0 = reference.eval_step(batch)
    return r0
evaluator = Evaluator(eval_flow).set_dataset(val_prompts)
engine = CustomEngine(reference, ppo_policy) \
         .set_evaluator(evaluator) \
         .set_dataset(train_prompts)
engine.learn()
