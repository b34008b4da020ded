"""Trains a reward model of a million parameters on the embedded world and scores two answers; about a minute on a CPU.

python examples/from_trl/train_and_score.py
"""

from rmtrl import LengthBiasCallback, MarginCallback, RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.splits import make_splits
from rmtrl.data.synthetic import make_preferences
from rmtrl.data.validation import validate
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer

result = validate(make_preferences(600, seed=0))
print(f"kept {len(result.kept)} of {result.n} pairs; rejected {result.reasons}")
splits = make_splits(result.kept, seed=0)

tokenizer = make_tiny_tokenizer(m["content"] for row in splits.train for m in row["prompt"] + row["chosen"])
make_tiny_llama(tokenizer).save_pretrained("outputs/example/start")
tokenizer.save_pretrained("outputs/example/start")

args = RewardConfig(
    "outputs/example/rm", num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=16, bf16=False,
    gradient_checkpointing=False, logging_steps=20, report_to="none",
)  # fmt: skip
trainer = RewardTrainer(
    "outputs/example/start", args, train_dataset=splits.train, eval_dataset=splits.validation,
    processing_class=tokenizer, callbacks=[MarginCallback(), LengthBiasCallback()],
)  # fmt: skip
trainer.train()
print("validation accuracy", trainer.evaluate()["eval_accuracy"])
trainer.save_model("outputs/example/rm")

question = {"role": "user", "content": "What is the capital of France?"}
answers = ["The capital of France is Paris.", "The capital of France is Madrid."]
chats = [[question, {"role": "assistant", "content": answer}] for answer in answers]
print(dict(zip(answers, RewardScorer.from_pretrained("outputs/example/rm").score(chats), strict=True)))
