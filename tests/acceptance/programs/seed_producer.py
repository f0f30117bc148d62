# A producer, as a user writes it.

import asyncio
from easyjobs.producers.rabbitmq import get_producer_channel

async def main():
    producer = await get_producer_channel('amqp://guest:guest@127.0.0.1/', 'DEFAULT')
    job = {
        'namespace': 'DEFAULT',
        'name': 'basic_job',
        'args': [1, 2, 3, 4],
        'kwargs': {}
    }
    await producer.send_job(job)
    await producer.send_jobs([{'job': {**job, 'args': [n, n, n]}} for n in range(10)])
    await producer.close()

asyncio.run(main())
